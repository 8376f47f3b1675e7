package lab

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// diary is a hand-made history of ada's list, told in seconds. Lists are written as words: "one two".
type diary struct{ tale }

func (s *diary) op(from, to float64, op, value, list string, outcome Outcome) *diary {
	s.tale.op(from, to, op, value, outcome)
	o := &s.ops[len(s.ops)-1]
	o.Write, o.List = op == listAppend, strings.Fields(list)
	return s
}

// add appends; the list is the answer, its last word the entry.
func (s *diary) add(from, to float64, list string) *diary {
	words := strings.Fields(list)
	return s.op(from, to, listAppend, words[len(words)-1], list, OK)
}

func (s *diary) read(from, to float64, list string) *diary {
	return s.op(from, to, listRead, "", list, OK)
}

func (s *diary) unknown(from, to float64, value string) *diary {
	return s.op(from, to, listAppend, value, "", Unknown)
}

func (s *diary) end(list string) *diary {
	s.read(60, 60, list)
	s.ops[len(s.ops)-1].Client = finalClient
	return s
}

func (s *diary) lost() *diary {
	s.tale.lost()
	return s
}

func (s *diary) logged(at float64, list, decision string) *diary {
	row, err := json.Marshal(map[string]string{"id": ada, listColumn: "{" + strings.Join(strings.Fields(list), ",") + "}"})
	if err != nil {
		panic(err)
	}
	s.conflicts = append(s.conflicts, ConflictRow{Database: "b", Origin: "a", Kind: "stale_update", Table: "public.customers", Keyspace: users, Handover: "h1", Remote: row, Decision: decision, At: second(at)})
	return s
}

// droppedEntries: two and three were at a only, b went on from one.
func droppedEntries() *diary {
	return new(diary).add(1, 2, "one").add(8, 8.1, "one two").add(9, 9.1, "one two three").read(9.2, 9.3, "one two three").
		lost().read(15.1, 15.2, "one").add(16, 17, "one four").logged(21, "one two", "kept").logged(21, "one two three", "kept").read(26, 27, "one four").end("one four")
}

// returnedEntries: nobody wrote meanwhile, so that a's entries stand.
func returnedEntries() *diary {
	return new(diary).add(1, 2, "one").add(8, 8.1, "one two").add(9, 9.1, "one two three").lost().read(15.1, 15.2, "one").
		logged(21, "one two", "applied").logged(21, "one two three", "applied").read(21, 21.1, "one two").read(26, 27, "one two three").end("one two three")
}

func TestCheckLists(t *testing.T) {
	t.Parallel()
	unlogged := droppedEntries()
	unlogged.conflicts = unlogged.conflicts[:1]
	other := droppedEntries()
	other.conflicts[1].Handover = "h9"
	for name, test := range map[string]struct {
		s         *diary
		violation string
	}{
		"one after the other":          {new(diary).add(1, 2, "one").read(3, 4, "one").add(5, 6, "one two").end("one two"), ""},
		"at the same time":             {new(diary).add(1, 5, "one").add(2, 4, "one two").read(2, 3, "").read(2, 6, "one").end("one two"), ""},
		"unknown, and entered":         {new(diary).add(1, 2, "one").unknown(3, 4, "two").read(5, 6, "one two").end("one two"), ""},
		"unknown, and entered later":   {new(diary).add(1, 2, "one").unknown(3, 4, "two").read(5, 6, "one").read(7, 8, "one two").end("one two"), ""},
		"unknown, and not entered":     {new(diary).add(1, 2, "one").unknown(3, 4, "two").read(5, 6, "one").end("one"), ""},
		"refused":                      {new(diary).add(1, 2, "one").op(3, 4, listAppend, "two", "", Fail).end("one"), ""},
		"dropped and logged":           {droppedEntries(), ""},
		"dropped, applied":             {returnedEntries(), ""},
		"unknown in the tail":          {droppedEntries().unknown(9.5, 12, "last").logged(21, "one two three last", "kept"), ""},
		"lost":                         {new(diary).add(1, 2, "one").add(3, 4, "one two").end("one"), "acknowledged and is missing"},
		"lost and replaced":            {new(diary).add(1, 2, "one").add(3, 4, "one two").add(5, 6, "one three").end("one three"), "is no beginning of the 2"},
		"twice":                        {new(diary).add(1, 2, "one").read(3, 4, "one one").end("one one"), `has "one" twice`},
		"another order":                {new(diary).add(1, 2, "one").add(1, 2, "one two").read(3, 4, "two one").end("one two"), "they differ from entry 1 on"},
		"shorter later":                {new(diary).add(1, 2, "one").add(3, 4, "one two").read(5, 6, "one").end("one two"), "it has 1 entries after 2"},
		"nobody's":                     {new(diary).add(1, 2, "one").read(3, 4, "one zero").end("one zero"), "which no client appended"},
		"before it was sent":           {new(diary).add(1, 2, "one").read(3, 4, "one two").add(5, 6, "one two").end("one two"), "before that was sent"},
		"refused and entered":          {new(diary).add(1, 2, "one").op(3, 4, listAppend, "two", "", Fail).end("one two"), "refused, and in the list"},
		"one site has less":            {new(diary).add(1, 2, "one").add(3, 4, "one two").end("one two").end("one"), "it has 1 entries after 2"},
		"the answer lacks its entry":   {new(diary).add(1, 2, "one").op(3, 4, listAppend, "two", "one", OK).end("one two"), "does not end with its entry"},
		"a value twice":                {new(diary).add(1, 2, "one").add(3, 4, "one").end("one"), "two operations append one value"},
		"dropped, one not logged":      {unlogged, "is no beginning"},
		"dropped, of another failover": {other, "acknowledged and is missing"},
		"seen after the taker opened":  {droppedEntries().read(16, 16.5, "one two"), "is no beginning"},
		"appended after it, logged":    {droppedEntries().add(15.5, 15.6, "one two three stray").logged(22, "one two three stray", "kept"), "acknowledged and is missing"},
		"the owner's own lost":         {droppedEntries().read(28, 29, "one"), "it has 1 entries after 2"},
		"gone at the lost site":        {droppedEntries().read(9.5, 9.6, "one two"), "it has 2 entries after 3"},
		"not back after the settling":  {returnedEntries().read(26, 27, "one"), "it has 1 entries after 3"},
		"applied, and missing":         {returnedEntries().end("one two"), "it has 2 entries after 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want(t, CheckLists(test.s.ops, test.s.conflicts, test.s.losses), test.violation)
		})
	}
	if c := CheckLists(nil, nil, nil); c.Passed() {
		t.Error("a check of nothing passes")
	}
	if c := CheckLists(new(diary).add(1, 2, "one").ops, nil, nil); c.Passed() {
		t.Error("a list that is never read passes")
	}
}

func TestArrayOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{"": nil, "{}": nil, "{a}": {"a"}, "{a-1,b}": {"a-1", "b"}} {
		if got := arrayOf(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q", text, got)
		}
	}
}
