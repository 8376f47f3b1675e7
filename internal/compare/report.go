package compare

import (
	"cmp"
	"maps"
	"slices"
)

// MaxFields is how many fields a report keeps that differ from the candidate's, and as many that differ from the primary's own;
// of others it only counts the differences.
const MaxFields = 200

// maxSamples is how many examples are kept of a field.
const maxSamples = 3

// Result is what comes of comparing one answer.
type Result string

const (
	// Same: nothing differs.
	Same Result = "same"
	// Noise: only fields differ that differ from the primary's own answers about as often.
	Noise Result = "noise"
	// Different: something else differs.
	Different Result = "different"
)

// Results are all of them.
var Results = []Result{Same, Noise, Different}

// Report adds up differences. The zero value is an empty report.
type Report struct {
	compared int // answers of the candidate
	repeated int // answers of the primary, compared with its own
	fields   map[string]*field
	noise    map[string]int // in how many repeated answers a field differed
	beyond   int            // differences of fields for which there is no room
}

type field struct {
	answers int // in which it differed
	kinds   map[Kind]int
	samples []Sample
}

// Sample is an example of a difference.
type Sample struct {
	Kind      Kind   `json:"kind"`
	Primary   string `json:"primary,omitempty"`
	Candidate string `json:"candidate,omitempty"`
}

// Field is a field in a report.
type Field struct {
	Field   string       `json:"field"`
	Answers int          `json:"answers"`         // in which it differed from the candidate's
	Share   float64      `json:"share"`           // of the answers that were compared
	Kinds   map[Kind]int `json:"kinds"`           // how it differed
	Repeats int          `json:"repeats"`         // in which it differed from the primary's own
	Own     float64      `json:"own_share"`       // of the primary's answers that were compared with its own
	Noise   bool         `json:"noise,omitempty"` // it does not count
	Samples []Sample     `json:"samples,omitempty"`
}

// Totals is how much a report has seen.
type Totals struct {
	Compared int `json:"compared"`         // answers of the candidate
	Repeated int `json:"repeated"`         // answers of the primary that were compared with its own
	Beyond   int `json:"beyond,omitempty"` // differences of fields beyond MaxFields
}

// Repeat takes in how an answer of the primary differs from one that it gave to the same request before.
func (r *Report) Repeat(found []Difference) {
	r.repeated++
	for name := range names(found) {
		if _, known := r.noise[name]; known || len(r.noise) < MaxFields {
			if r.noise == nil {
				r.noise = make(map[string]int)
			}
			r.noise[name]++
		}
	}
}

// Add takes in how an answer of the candidate differs from the primary's, and says what that comes to by what is known of noise.
func (r *Report) Add(found []Difference) Result {
	r.compared++
	for name := range names(found) {
		if f := r.field(name); f != nil {
			f.answers++
		}
	}
	for _, d := range found {
		if f := r.fields[d.Field]; f != nil {
			f.kinds[d.Kind]++
			if len(f.samples) < maxSamples {
				f.samples = append(f.samples, Sample{d.Kind, d.Primary, d.Candidate})
			}
		} else {
			r.beyond++
		}
	}
	result := Same
	for _, d := range found {
		if f := r.fields[d.Field]; f == nil || !r.isNoise(d.Field, f.answers) {
			return Different
		}
		result = Noise
	}
	return result
}

// field finds a field, or makes it; nil where there is no room.
func (r *Report) field(name string) *field {
	f := r.fields[name]
	if f == nil && len(r.fields) < MaxFields {
		if r.fields == nil {
			r.fields = make(map[string]*field)
		}
		f = &field{kinds: make(map[Kind]int)}
		r.fields[name] = f
	}
	return f
}

// Diffy's thresholds (DifferencesFilterFactory, 20 % and 0.03 %).
const (
	leastRelative = 0.2
	leastAbsolute = 0.0003
)

// isNoise tells whether a field that differed from so many of the candidate's answers differs from the primary's own about as
// often.
func (r *Report) isNoise(name string, answers int) bool {
	n := r.noise[name]
	if n == 0 {
		return false
	}
	raw, own := float64(answers)/float64(r.compared), float64(n)/float64(r.repeated)
	return raw-own <= leastRelative*(raw+own) || raw-own <= leastAbsolute
}

// Totals is how much was seen.
func (r *Report) Totals() Totals { return Totals{r.compared, r.repeated, r.beyond} }

// Fields lists what differs: first what counts, and of that what differs most often.
func (r *Report) Fields() []Field {
	out := make([]Field, 0, len(r.fields))
	for name, f := range r.fields {
		one := Field{Field: name, Answers: f.answers, Share: float64(f.answers) / float64(r.compared), Kinds: maps.Clone(f.kinds),
			Repeats: r.noise[name], Noise: r.isNoise(name, f.answers), Samples: slices.Clone(f.samples)}
		if r.repeated > 0 {
			one.Own = float64(one.Repeats) / float64(r.repeated)
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b Field) int {
		if a.Noise != b.Noise {
			if a.Noise {
				return 1
			}
			return -1
		}
		return cmp.Or(cmp.Compare(b.Answers, a.Answers), cmp.Compare(a.Field, b.Field))
	})
	return out
}

func names(found []Difference) map[string]bool {
	out := make(map[string]bool, len(found))
	for _, d := range found {
		out[d.Field] = true
	}
	return out
}
