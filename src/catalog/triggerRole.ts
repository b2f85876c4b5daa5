/**
 * The role of a foreign key's trigger, from the name of its function, as an SQL expression of type
 * text.
 */
export const roleOf = (functionName: string): string =>
  `CASE WHEN ${functionName} = 'RI_FKey_check_ins' THEN 'checkInsert'
    WHEN ${functionName} = 'RI_FKey_check_upd' THEN 'checkUpdate'
    WHEN ${functionName} LIKE '%\\_del' THEN 'delete' ELSE 'update' END`
