package model

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// table gives each distinct value of a state machine a number, so that a state of the whole world is a few hundred bytes
// and equal parts are kept once. Numbers begin at 1; 0 is "none".
type table[T any] struct {
	ids  sync.Map // encoded value → uint32
	grow sync.Mutex
	vals atomic.Pointer[[]T]
}

// put returns the number of a value.
func (t *table[T]) put(v T) uint32 {
	key := string(encode(nil, reflect.ValueOf(v)))
	if id, ok := t.ids.Load(key); ok {
		return id.(uint32)
	}
	t.grow.Lock()
	defer t.grow.Unlock()
	if id, ok := t.ids.Load(key); ok {
		return id.(uint32)
	}
	var vals []T
	if p := t.vals.Load(); p != nil {
		vals = *p
	}
	vals = append(vals, v) // readers of the old slice see what they saw: nothing in it changes
	t.vals.Store(&vals)
	id := uint32(len(vals))
	t.ids.Store(key, id)
	return id
}

func (t *table[T]) get(id uint32) T { return (*t.vals.Load())[id-1] }

// small is put for a table that the world's layout limits to 65535 values.
func (t *table[T]) small(v T) uint16 {
	id := t.put(v)
	if id > 1<<16-1 {
		panic(fmt.Sprintf("BUG: more than %d different values of %T", 1<<16-1, v))
	}
	return uint16(id)
}

// memo remembers what a pure function made of its arguments.
type memo[V any] struct{ m sync.Map }

func (m *memo[V]) get(k any, f func() V) V {
	if v, ok := m.m.Load(k); ok {
		return v.(V)
	}
	v := f()
	m.m.Store(k, v)
	return v
}

// mute lists the fields that are for people: texts, and times that are only reported. No decision reads them, so values
// that differ in nothing else count as one. A field that is not listed counts, also one that is added some day.
var mute = map[string]bool{
	"handover.Record.Steps": true, "handover.Record.Reasons": true, "handover.Record.Pause": true, "handover.Record.Why": true,
	"handover.Record.Who": true, "handover.Failover.ExpiredUS": true, "handover.Failover.WaitedUS": true, "handover.Failover.OpenUS": true,
	"handover.Failover.LossMS": true, "handover.State.claimed": true, "handover.State.fenced": true, "handover.Lookout.told": true,
	"handover.Lookout.Blind": true, "handover.Lookout.began": true, "topo.Ownership.Checksum": true, "handover.Action.Text": true,
}

// presence lists the fields of which only counts whether they are empty.
var presence = map[string]bool{"handover.Lookout.stop": true, "handover.Lookout.Looked": true}

var timeType = reflect.TypeFor[time.Time]()

type fieldPlan struct {
	n        int
	mute     bool
	presence bool
}

var fieldPlans sync.Map // reflect.Type → []fieldPlan

func planOf(t reflect.Type) []fieldPlan {
	if p, ok := fieldPlans.Load(t); ok {
		return p.([]fieldPlan)
	}
	var out []fieldPlan
	for i := range t.NumField() {
		name := t.String() + "." + t.Field(i).Name
		out = append(out, fieldPlan{i, mute[name], presence[name]})
	}
	fieldPlans.Store(t, out)
	return out
}

// encode appends a value, private fields included, in a form that is equal exactly for equal values. Times count as
// moments; they carry no monotonic reading here.
func encode(b []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == timeType { // wall holds the nanoseconds, ext the seconds since year 1
			b = binary.AppendUvarint(b, v.Field(0).Uint())
			return binary.AppendVarint(b, v.Field(1).Int())
		}
		for _, f := range planOf(v.Type()) {
			switch {
			case f.mute:
			case f.presence && v.Field(f.n).IsZero():
				b = append(b, 0)
			case f.presence:
				b = append(b, 1)
			default:
				b = encode(b, v.Field(f.n))
			}
		}
		return b
	case reflect.String:
		b = binary.AppendUvarint(b, uint64(v.Len()))
		return append(b, v.String()...)
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1)
		}
		return append(b, 0)
	case reflect.Int, reflect.Int64, reflect.Int32, reflect.Int16, reflect.Int8:
		return binary.AppendVarint(b, v.Int())
	case reflect.Uint, reflect.Uint64, reflect.Uint32, reflect.Uint16, reflect.Uint8:
		return binary.AppendUvarint(b, v.Uint())
	case reflect.Slice:
		b = binary.AppendUvarint(b, uint64(v.Len()))
		for i := range v.Len() {
			b = encode(b, v.Index(i))
		}
		return b
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, 0)
		}
		return encode(append(b, 1), v.Elem())
	case reflect.Map:
		var pairs []string
		for _, k := range v.MapKeys() {
			pairs = append(pairs, string(encode(encode(nil, k), v.MapIndex(k))))
		}
		slices.Sort(pairs)
		b = binary.AppendUvarint(b, uint64(len(pairs)))
		for _, p := range pairs {
			b = append(b, p...)
		}
		return b
	}
	panic(fmt.Sprintf("BUG: no encoding of a %s", v.Type()))
}
