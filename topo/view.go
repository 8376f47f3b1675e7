package topo

// Slot is what a view says about one bucket.
type Slot struct {
	Owner    SiteID
	Epoch    Epoch
	Moving   bool
	Target   SiteID     // where a moving bucket goes
	Handover HandoverID // which handover moves it
	Cut      *Cut       // where a lost owner's epoch ended; nil: none that is still to be minded
}

// View is a gateway's or SDK's validated, compiled copy of the ownership document: a look-up per bucket without
// search or allocation. It is immutable and safe for concurrent use.
type View struct {
	Ownership Ownership
	slots     map[KeyspaceID][]Slot
}

// NewView compiles a document; it refuses what [Ownership.Validate] refuses.
func NewView(o Ownership) (*View, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	v := &View{Ownership: o, slots: make(map[KeyspaceID][]Slot, len(o.Keyspaces))}
	for ks, p := range o.Keyspaces {
		slots := make([]Slot, p.Buckets)
		for _, r := range p.Ranges {
			for b := int(r.First); b <= int(r.Last); b++ {
				slots[b] = Slot{Owner: r.Owner, Epoch: r.Epoch, Moving: r.State == Moving, Target: r.Target, Handover: r.Handover, Cut: r.Cut}
			}
		}
		v.slots[ks] = slots
	}
	return v, nil
}

// Buckets is the number of buckets of a keyspace, 0 if the view does not know it.
func (v *View) Buckets(ks KeyspaceID) int { return len(v.slots[ks]) }

// Slot looks a bucket up. ok is false for a keyspace or bucket that the view does not know.
func (v *View) Slot(ks KeyspaceID, b BucketID) (Slot, bool) {
	slots := v.slots[ks]
	if int(b) >= len(slots) {
		return Slot{}, false
	}
	return slots[b], true
}
