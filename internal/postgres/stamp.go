package postgres

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// stamper says of each row of a site's stream which bucket it belongs to and at which epoch the site held that bucket
// when the row was committed. Epochs come from the fence's own rows in the same stream, never from a current view
// (I5). It also recognises the site's markers.
type stamper struct {
	site      topo.SiteID
	tables    map[string]TableSpec
	keyspaces map[topo.KeyspaceID]topo.Keyspace
	epochs    change.Epochs
	rules     map[*change.Table]*stampRule
}

type stampRule struct {
	keyspace topo.KeyspaceID
	buckets  int // 0: not fenced
	key      int // column of the key; -1 for home tables, whose rows are all in bucket 0
	keyType  uint32
	columns  map[string]int // of atoll's own tables
	fence    bool           // atoll.bucket
	marker   bool           // atoll.marker
}

func newStamper(cfg *CaptureConfig, epochs change.Epochs) *stamper {
	s := &stamper{site: cfg.Site, keyspaces: cfg.Keyspaces, tables: make(map[string]TableSpec, len(cfg.Tables)),
		epochs: make(change.Epochs), rules: make(map[*change.Table]*stampRule)}
	for _, t := range cfg.Tables {
		s.tables[t.String()] = t
	}
	for ks, in := range epochs {
		s.epochs[ks] = maps.Clone(in)
	}
	return s
}

func (s *stamper) rule(t *change.Table) (*stampRule, error) {
	if r := s.rules[t]; r != nil {
		return r, nil
	}
	r := &stampRule{key: -1}
	spec, known := s.tables[t.Schema+"."+t.Name]
	switch {
	case t.Schema == "atoll":
		r.columns = make(map[string]int, len(t.Columns))
		for i, c := range t.Columns {
			r.columns[c.Name] = i
		}
		r.fence, r.marker = t.Name == "bucket", t.Name == "marker"
	case !known:
		return nil, fmt.Errorf("publication %s holds table %s.%s, which the spec does not name; run atoll apply", PublicationName, t.Schema, t.Name)
	case spec.Fenced():
		ks, ok := s.keyspaces[spec.Keyspace]
		if !ok || ks.Buckets < 1 {
			return nil, fmt.Errorf("table %s is in keyspace %q, which the spec does not declare", spec, spec.Keyspace)
		}
		r.keyspace, r.buckets = spec.Keyspace, ks.Buckets
		if spec.Kind == topo.Keyed {
			for i, c := range t.Columns {
				if c.Name == spec.Key {
					r.key, r.keyType = i, c.Type
				}
			}
			if r.key < 0 {
				return nil, fmt.Errorf("table %s has no column %q, its key in the spec", spec, spec.Key)
			}
		}
	}
	s.rules[t] = r
	return r, nil
}

// stamp fills in the row's keyspace, buckets and epochs. When the row is a marker of this site, it is returned too.
func (s *stamper) stamp(row *change.Row) (*change.Marker, error) {
	r, err := s.rule(row.Table)
	if err != nil {
		return nil, err
	}
	if r.fence {
		return nil, s.learn(r, row)
	}
	if r.marker {
		return s.marker(r, row)
	}
	if r.buckets == 0 {
		return nil, nil
	}
	row.Keyspace = r.keyspace
	if row.Op == change.Truncate {
		return nil, nil
	}
	if row.New != nil {
		row.NewBucket, row.NewEpoch = s.place(r, row.New, row.Old)
	}
	switch {
	case row.Old != nil && (r.key < 0 || row.Old[r.key].Kind == change.Text):
		row.OldBucket, row.OldEpoch = s.place(r, row.Old, nil)
	case row.Op == change.Update: // the server sent no old image: the key stayed
		row.OldBucket, row.OldEpoch = row.NewBucket, row.NewEpoch
	}
	return nil, nil
}

// place looks the bucket of an image up. other is the image to take the key from when this one left it out as
// unchanged.
func (s *stamper) place(r *stampRule, image, other []change.Value) (topo.BucketID, topo.Epoch) {
	bucket := topo.BucketID(0)
	if r.key >= 0 {
		v := image[r.key]
		if v.Kind == change.Unchanged && other != nil {
			v = other[r.key]
		}
		if v.Kind != change.Text {
			return 0, 0
		}
		bucket = bucketOf(r.keyType, v.Bytes, r.buckets)
	}
	return bucket, s.epochs[r.keyspace][bucket]
}

const (
	oidBool   = 16
	oidBpchar = 1042
)

// bucketOf is the bucket of a key in the server's text form: the first four bytes of the MD5 of key::text, which
// differs from the output form for the types below.
func bucketOf(typeOID uint32, key []byte, buckets int) topo.BucketID {
	switch typeOID {
	case oidBpchar:
		key = bytes.TrimRight(key, " ")
	case oidBool:
		if string(key) == "t" {
			key = []byte("true")
		} else {
			key = []byte("false")
		}
	}
	sum := md5.Sum(key)
	return topo.BucketID(binary.BigEndian.Uint32(sum[:4]) & uint32(buckets-1))
}

func (r *stampRule) text(image []change.Value, column string) string {
	i, ok := r.columns[column]
	if !ok || image == nil || image[i].Kind != change.Text {
		return ""
	}
	return string(image[i].Bytes)
}

// learn takes an epoch row of this site into the map.
func (s *stamper) learn(r *stampRule, row *change.Row) error {
	image := row.New
	if row.Op == change.Delete {
		image = row.Old
	}
	if row.Op == change.Truncate || topo.SiteID(r.text(image, "site")) != s.site {
		return nil
	}
	ks := topo.KeyspaceID(r.text(image, "keyspace"))
	bucket, err := strconv.ParseUint(r.text(image, "bucket"), 10, 16)
	if err != nil {
		return fmt.Errorf("row of atoll.bucket: bucket: %w", err)
	}
	if row.Op == change.Delete {
		delete(s.epochs[ks], topo.BucketID(bucket))
		return nil
	}
	epoch, err := strconv.ParseUint(r.text(image, "epoch"), 10, 64)
	if err != nil {
		return fmt.Errorf("row of atoll.bucket: epoch: %w", err)
	}
	if s.epochs[ks] == nil {
		s.epochs[ks] = make(map[topo.BucketID]topo.Epoch)
	}
	s.epochs[ks][topo.BucketID(bucket)] = topo.Epoch(epoch)
	return nil
}

func (s *stamper) marker(r *stampRule, row *change.Row) (*change.Marker, error) {
	if row.New == nil || topo.SiteID(r.text(row.New, "site")) != s.site {
		return nil, nil
	}
	return parseMarker(r.text(row.New, "site"), r.text(row.New, "handover"), r.text(row.New, "kind"), r.text(row.New, "keyspace"),
		[]byte(r.text(row.New, "buckets")), []byte(r.text(row.New, "vector")))
}

// parseMarker validates a row of atoll.marker.
func parseMarker(site, handover, kind, keyspace string, buckets, vector []byte) (*change.Marker, error) {
	m := &change.Marker{Kind: change.MarkerKind(kind), Site: topo.SiteID(site), Handover: topo.HandoverID(handover), Keyspace: topo.KeyspaceID(keyspace)}
	if m.Kind != change.MarkerClosed && m.Kind != change.MarkerOpened {
		return nil, fmt.Errorf("marker %s of site %s has unknown kind %q", handover, site, kind)
	}
	if err := json.Unmarshal(buckets, &m.Buckets); err != nil {
		return nil, fmt.Errorf("marker %s of site %s: buckets: %w", handover, site, err)
	}
	if err := json.Unmarshal(vector, &m.Vector); err != nil {
		return nil, fmt.Errorf("marker %s of site %s: vector: %w", handover, site, err)
	}
	return m, nil
}
