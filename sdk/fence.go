package sdk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"

	"github.com/atollhq/atoll/topo"
)

// SQLSTATEs of the fence. A third, AT003, refuses TRUNCATE at every site: a mistake in a program, which no site cures.
const (
	codeNotOwned    = "AT001"
	codeLeaseRunOut = "AT002"
)

// HeaderFenced tells a gateway that the fence refused a write: KEYSPACE/BUCKET/EPOCH, with status 503.
const HeaderFenced = "Atoll-Fenced"

// FencedError is the refusal of a write by the fence in the site's database. The transaction has to be rolled back; then
// nothing of it was done, and it may be tried where the bucket is owned.
type FencedError struct {
	Keyspace topo.KeyspaceID // "" where the driver does not hand on the error's DETAIL
	Bucket   topo.BucketID
	Owner    topo.SiteID // as far as this site's database knows; "" if it does not
	Epoch    topo.Epoch  // of that owner; 0 if it is not known
	Lease    bool        // this site may accept no writes at present; else it does not own the bucket, or not yet or no more
	err      error
}

// Fenced finds a refusal of the fence in an error of any PostgreSQL driver: an error in its chain has a method SQLState()
// string, as those of pgx and lib/pq have, and a field Detail.
func Fenced(err error) (*FencedError, bool) {
	var known *FencedError
	if errors.As(err, &known) {
		return known, true
	}
	var refused interface {
		error
		SQLState() string
	}
	if !errors.As(err, &refused) {
		return nil, false
	}
	code := refused.SQLState()
	if code != codeNotOwned && code != codeLeaseRunOut {
		return nil, false
	}
	out := &FencedError{Lease: code == codeLeaseRunOut, err: err}
	out.read(detailOf(refused))
	return out, true
}

// read takes what the fence writes into DETAIL; a text that is not that says nothing.
func (e *FencedError) read(detail string) {
	var d struct {
		Keyspace topo.KeyspaceID `json:"keyspace"`
		Bucket   topo.BucketID   `json:"bucket"`
		Owner    topo.SiteID     `json:"owner"`
		Epoch    topo.Epoch      `json:"epoch"`
	}
	if json.Unmarshal([]byte(detail), &d) != nil || topo.CheckName(string(d.Keyspace)) != nil || d.Bucket >= topo.MaxBuckets {
		return
	}
	e.Keyspace, e.Bucket, e.Owner, e.Epoch = d.Keyspace, d.Bucket, d.Owner, d.Epoch
}

// detailOf reads the field Detail: drivers agree on its name, and on no method.
func detailOf(err error) string {
	v := reflect.ValueOf(err)
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return ""
	}
	if f := v.FieldByName("Detail"); f.IsValid() && f.Kind() == reflect.String {
		return f.String()
	}
	return ""
}

func (e *FencedError) Error() string {
	switch {
	case e.Lease:
		return "fenced: this site may accept no writes at present"
	case e.Keyspace == "":
		return "fenced: the bucket is not open for writes at this site"
	case e.Owner == "":
		return fmt.Sprintf("fenced: bucket %d of keyspace %s is not open for writes at this site", e.Bucket, e.Keyspace)
	}
	return fmt.Sprintf("fenced: bucket %d of keyspace %s is not open for writes at this site; its owner is %s (epoch %d)", e.Bucket, e.Keyspace, e.Owner, e.Epoch)
}

// Unwrap is the driver's error.
func (e *FencedError) Unwrap() error { return e.err }

// Where is the value of [HeaderFenced], "" if the keyspace is not known.
func (e *FencedError) Where() string {
	if e.Keyspace == "" {
		return ""
	}
	return fmt.Sprintf("%s/%d/%d", e.Keyspace, e.Bucket, e.Epoch)
}

// Mark sets the headers of the answer that a gateway understands. The answer's status must be 503, and the transaction must
// have been rolled back, with nothing else done: on routes with fenced_retry the gateway sends the request again.
func (e *FencedError) Mark(h http.Header) {
	h.Set("Retry-After", "1")
	if where := e.Where(); where != "" {
		h.Set(HeaderFenced, where)
	}
}

// WriteFenced answers a request whose write the fence refused: 503 with [HeaderFenced]. It reports whether err was such a
// refusal, and writes nothing if not. Call it after the rollback.
func WriteFenced(w http.ResponseWriter, err error) bool {
	e, ok := Fenced(err)
	if !ok {
		return false
	}
	e.Mark(w.Header())
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = io.WriteString(w, "this is served at another site at the moment; nothing was done, please try again\n")
	return true
}
