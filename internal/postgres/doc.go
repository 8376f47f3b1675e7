// Package postgres is Atoll's adapter for PostgreSQL 15 to 18. It needs no extension and no superuser.
//
// [Fence] keeps a database's fence: which buckets it accepts writes for, and until when. Plan, Apply and Remove
// install what a site's database needs and take it out again; Preflight says what would be in the way. The capture
// side reads changes from the source database, the apply side writes them at the target.
//
// It guarantees, within one database: I2 (no application's write to a bucket that the site does not own, or after
// its lease ran out), the database's half of I3 (every write of a closed bucket stands before the marker in the
// change stream), I6 (a fence opens by a conditional step) and I7 (a crash closes it). It refuses to touch what the
// spec does not name.
package postgres
