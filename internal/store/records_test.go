package store

import (
	"bytes"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// What the store, or a file, holds is not ours to trust: it is refused or understood, and what is understood encodes
// to something that is understood alike.
func FuzzRecords(f *testing.F) {
	l := Lease{Holder: "i", Sequence: 3, Duration: 10 * time.Second, Database: topo.Identity{System: "1", Timeline: 1}, Beat: 12, Rebuild: true, Revoked: true, RevokedBy: "h"}
	body, err := l.encode()
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := seal("w", body)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(sealed))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"deployment":"shop","site":"a","members":{"a":"h:1"}}`))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		writeOf(data)
		parseMemberFile(data)
		env, err := unseal("k", data)
		if err != nil {
			return
		}
		if again, err := seal(env.Write, env.Body); err != nil {
			t.Fatal(err)
		} else if e, err := unseal("k", []byte(again)); err != nil || e.Write != env.Write || writeOf([]byte(again)) != env.Write {
			t.Fatalf("%q: %v", again, err)
		}
		l, err := decodeLease(env.Body)
		if err != nil {
			return
		}
		body, err := l.encode()
		if err != nil {
			t.Fatalf("%+v was read but cannot be written: %v", l, err)
		}
		if back, err := decodeLease(body); err != nil || back != l {
			t.Fatalf("%+v came back as %+v, %v", l, back, err)
		}
	})
}

func TestLeaseComesBackAsItWas(t *testing.T) {
	t.Parallel()
	l := Lease{
		Holder: "i", Sequence: 9, Duration: 3 * time.Second, Database: topo.Identity{System: "74", Timeline: 3},
		Generation: 2, Version: 17, Revoked: true, RevokedBy: "h-1", Released: true,
	}
	body, err := l.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeLease(body); err != nil || got != l {
		t.Errorf("%+v came back as %+v, %v", l, got, err)
	}
	if _, err := decodeLease(bytes.Replace(body, []byte(`"holder"`), []byte(`"hodler"`), 1)); err == nil {
		t.Error("an unknown field passed")
	}
}
