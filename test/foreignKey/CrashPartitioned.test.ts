import { describe } from "../support/it.js"
import { stopped } from "./Crash.js"

const plainParent = "CREATE TABLE parent (id int PRIMARY KEY);"

const partitionedParent = `
  CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY RANGE (id);
  CREATE TABLE parent_low PARTITION OF parent FOR VALUES FROM (MINVALUE) TO (50);
  CREATE TABLE parent_high PARTITION OF parent FOR VALUES FROM (50) TO (MAXVALUE) PARTITION BY RANGE (id);
  CREATE TABLE parent_higher PARTITION OF parent_high FOR VALUES FROM (50) TO (MAXVALUE);`

const column = "parent_id int CONSTRAINT child_parent REFERENCES parent ON UPDATE CASCADE DEFERRABLE"

const plainChild = `CREATE TABLE child (id int PRIMARY KEY, ${column});`

const partitionedChild = `
  CREATE TABLE child (id int PRIMARY KEY, ${column}) PARTITION BY RANGE (id);
  CREATE TABLE child_low PARTITION OF child FOR VALUES FROM (MINVALUE) TO (50);
  CREATE TABLE child_high PARTITION OF child FOR VALUES FROM (50) TO (MAXVALUE) PARTITION BY RANGE (id);
  CREATE TABLE child_higher PARTITION OF child_high FOR VALUES FROM (50) TO (80);
  CREATE TABLE child_rest PARTITION OF child_high DEFAULT;`

const rows = `
  COMMENT ON CONSTRAINT child_parent ON child IS 'kept';
  INSERT INTO parent SELECT generate_series(1, 100);
  INSERT INTO child SELECT id, id FROM parent`

/** The server ends the session some thirty times in a test. */

describe("a change of partitioned tables that is stopped", () => {
  stopped("of a partitioned referencing table", plainParent + partitionedChild + rows, 12)
  stopped("of a partitioned referenced table", partitionedParent + plainChild + rows, 12)
  stopped("of two partitioned tables", partitionedParent + partitionedChild + rows, 12)
})
