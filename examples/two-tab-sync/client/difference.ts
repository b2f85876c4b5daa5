/**
 * What was done to a text: so many characters were deleted at a place, and others inserted there.
 */
export interface Difference {
  readonly index: number
  readonly deleted: number
  readonly inserted: string
}

/**
 * The smallest single change that makes `after` out of `before`. Of several that are equally small,
 * such as one more "a" among others, it is the one that ends at the caret, which is where the
 * person typed.
 */
export const difference = (before: string, after: string, caret: number): Difference => {
  const atCaret = changed(before, after, commonEnd(before, after, after.length - caret))
  const smallest = changed(before, after, commonEnd(before, after, after.length))
  return size(atCaret) <= size(smallest) ? atCaret : smallest
}

const size = ({ deleted, inserted }: Difference) => deleted + inserted.length

const changed = (before: string, after: string, end: number): Difference => {
  const start = commonStart(before, after, Math.min(before.length, after.length) - end)
  return {
    index: start,
    deleted: before.length - end - start,
    inserted: after.slice(start, after.length - end)
  }
}

const commonStart = (before: string, after: string, limit: number): number => {
  let length = 0
  while (length < limit && before[length] === after[length]) length++
  // Half a character that needs two UTF-16 units is none: Yjs would store a replacement character.
  return isHigh(before.charCodeAt(length - 1)) ? length - 1 : length
}

const commonEnd = (before: string, after: string, limit: number): number => {
  const most = Math.min(before.length, after.length, Math.max(limit, 0))
  let length = 0
  while (length < most && before.at(-1 - length) === after.at(-1 - length)) length++
  return isLow(before.charCodeAt(before.length - length)) ? length - 1 : length
}

const isHigh = (unit: number) => unit >= 0xd800 && unit <= 0xdbff
const isLow = (unit: number) => unit >= 0xdc00 && unit <= 0xdfff
