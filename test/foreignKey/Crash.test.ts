import { describe } from "../support/it.js"
import { stopped } from "./Crash.js"

const tables = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (
    id int PRIMARY KEY,
    parent_id int CONSTRAINT child_parent REFERENCES parent ON UPDATE CASCADE DEFERRABLE
  );
  COMMENT ON CONSTRAINT child_parent ON child IS 'kept';
  INSERT INTO parent SELECT generate_series(1, 100);
  INSERT INTO child SELECT id, id FROM parent`

describe("a change that is stopped", () => {
  stopped("of plain tables", tables, 8)
})
