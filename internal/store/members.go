package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/atollhq/atoll/topo"
)

var (
	// ErrWouldLoseQuorum: after the change, fewer members would answer than a decision needs.
	ErrWouldLoseQuorum = errors.New("the store would be without a quorum")
	// ErrNoMember: the store has no member of that name.
	ErrNoMember = errors.New("the store has no such member")
)

// Member is one member of the store, or of the spec.
type Member struct {
	Site    topo.SiteID `json:"member"`
	ID      string      `json:"id,omitempty"`   // in the store; empty: it is in the spec only
	Peer    string      `json:"peer,omitempty"` // as the store knows it
	Client  string      `json:"client,omitempty"`
	Learner bool        `json:"learner,omitempty"` // has no vote yet
	Started bool        `json:"started,omitempty"` // it has been seen by the store since it was added
	Leader  bool        `json:"leader,omitempty"`
	Index   uint64      `json:"index,omitempty"` // of the last entry of the log that it has applied
	Lag     uint64      `json:"lag,omitempty"`   // entries behind the member that is furthest
	Problem string      `json:"problem,omitempty"`
}

// Membership is who makes up the store.
type Membership struct {
	Members []Member `json:"members"`
	Quorum  int      `json:"quorum"`            // voters that have to answer
	Voters  int      `json:"voters"`            // of all
	Healthy int      `json:"healthy"`           // voters that answer
	Problem string   `json:"problem,omitempty"` // the list could not be confirmed by a quorum
}

func quorum(voters int) int { return voters/2 + 1 }

// Members lists the members of the store, and those of the configuration that are none. Without a quorum the list is
// what one member remembers, and Problem says so.
func (c *Client) Members(ctx context.Context) (Membership, error) {
	var out Membership
	list, err := c.memberList(ctx)
	if errors.Is(err, ErrUnavailable) {
		out.Problem = err.Error()
		list, err = c.rememberedList(ctx)
	}
	if err != nil {
		return out, err
	}
	state := c.statuses(ctx)
	listedSites := map[topo.SiteID]bool{}
	leader, furthest := uint64(0), uint64(0)
	for _, s := range state {
		if s.reply != nil {
			furthest = max(furthest, s.reply.RaftAppliedIndex)
			if leader == 0 {
				leader = s.reply.Leader
			}
		}
	}
	for _, m := range list {
		site := c.siteOf(m)
		listedSites[site] = true
		one := Member{Site: site, ID: fmt.Sprintf("%x", m.ID), Peer: bare(m.PeerURLs), Client: bare(m.ClientURLs), Learner: m.IsLearner,
			Started: len(m.ClientURLs) > 0, Leader: m.ID == leader}
		one.look(m, state[site], furthest)
		if !m.IsLearner {
			out.Voters++
			if one.Problem == "" {
				out.Healthy++
			}
		}
		out.Members = append(out.Members, one)
	}
	for _, e := range c.members {
		if e.Site != "" && !listedSites[e.Site] {
			out.Members = append(out.Members, Member{Site: e.Site, Client: e.Addr, Problem: fmt.Sprintf("in the spec, but not in the store; add it with `atoll store add %s`", e.Site)})
		}
	}
	slices.SortFunc(out.Members, func(a, b Member) int { return strings.Compare(string(a.Site), string(b.Site)) })
	out.Quorum = quorum(out.Voters)
	return out, nil
}

// look fills in what the member says of itself.
func (m *Member) look(listed *etcdserverpb.Member, s memberState, furthest uint64) {
	switch {
	case s.addr == "":
		m.Problem = "not in this agent's spec; restart the agents on the edited one"
	case !m.Started:
		m.Problem = "has not started since it was added; start it: atoll store --site " + string(m.Site)
	case s.err != nil:
		m.Problem = "does not answer: " + s.err.Error()
	case s.reply.Header.MemberId != listed.ID:
		m.Problem = fmt.Sprintf("at %s answers another member, %x", s.addr, s.reply.Header.MemberId)
	default:
		m.Index, m.Lag = s.reply.RaftAppliedIndex, furthest-s.reply.RaftAppliedIndex
		if s.reply.Leader == 0 {
			m.Problem = "sees no leader"
		}
		if len(s.reply.Errors) > 0 {
			m.Problem = strings.Join(s.reply.Errors, "; ")
		}
	}
}

// memberState is what a configured address says.
type memberState struct {
	addr  string
	reply *clientv3.StatusResponse
	err   error
}

func (c *Client) statuses(ctx context.Context) map[topo.SiteID]memberState {
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[topo.SiteID]memberState{}
	for _, m := range c.members {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 2*c.cfg.Try)
			defer cancel()
			s := memberState{addr: m.Addr}
			s.reply, s.err = m.etcd.Status(ctx, m.host)
			if s.err != nil {
				s.reply = nil
				m.mu.Lock()
				if m.mu.dialled != nil {
					s.err = m.mu.dialled
				}
				m.mu.Unlock()
			}
			mu.Lock()
			defer mu.Unlock()
			out[m.Site] = s
		})
	}
	wg.Wait()
	return out
}

// siteOf names a member; one that has never started is known to the store by its address only.
func (c *Client) siteOf(m *etcdserverpb.Member) topo.SiteID {
	if m.Name != "" {
		return topo.SiteID(m.Name)
	}
	for site, peer := range c.cfg.Peers {
		if peer == bare(m.PeerURLs) {
			return site
		}
	}
	return topo.SiteID(fmt.Sprintf("(%s)", bare(m.PeerURLs)))
}

func bare(urls []string) string {
	if len(urls) == 0 {
		return ""
	}
	return strings.TrimPrefix(urls[0], "https://")
}

func (c *Client) memberList(ctx context.Context) ([]*etcdserverpb.Member, error) {
	var list []*etcdserverpb.Member
	bound, cancel := context.WithTimeout(ctx, 6*c.cfg.Try)
	defer cancel()
	err := c.do(bound, func(ctx context.Context, etcd *clientv3.Client) error {
		resp, err := etcd.MemberList(ctx)
		if err == nil {
			list = resp.Members
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store: list members: %w", err)
	}
	return list, nil
}

// rememberedList asks without a quorum.
func (c *Client) rememberedList(ctx context.Context) ([]*etcdserverpb.Member, error) {
	var failures []error
	for _, m := range c.members {
		try, cancel := context.WithTimeout(ctx, c.cfg.Try)
		resp, err := m.etcd.MemberList(try, clientv3.WithSerializable())
		cancel()
		if err == nil {
			return resp.Members, nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", m.Site, err))
	}
	return nil, fmt.Errorf("store: list members: %w: %w", ErrUnavailable, errors.Join(failures...))
}

// Standing is how far a member has come on its way into the store.
type Standing string

const (
	Waiting  Standing = "waiting"  // added as a learner; its process has not started yet
	Learning Standing = "learning" // a learner that takes over what the others have
	Voting   Standing = "voting"   // a full member
)

// AddMember takes the next step of a member's way into the store, and says where it stands then: added as a learner,
// promoted when it has caught up. Repeat it until it is voting; it begins where it finds the member, also after another
// caller was interrupted.
func (c *Client) AddMember(ctx context.Context, site topo.SiteID, peer string) (Standing, error) {
	failed := func(err error) (Standing, error) { return "", fmt.Errorf("store: add member %s: %w", site, err) }
	if err := topo.CheckName(string(site)); err != nil {
		return failed(err)
	}
	u, err := httpsURL(peer)
	if err != nil {
		return failed(err)
	}
	all, err := c.Members(ctx)
	switch {
	case err != nil:
		return failed(err)
	case all.Problem != "":
		return failed(errors.New(all.Problem))
	}
	m, found := all.find(site, peer)
	switch {
	case !found && all.Healthy < all.Quorum:
		return failed(fmt.Errorf("%w: of %d voters %d answer", ErrWouldLoseQuorum, all.Voters, all.Healthy))
	case !found:
		err := c.reconfigure(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
			_, err := etcd.MemberAddAsLearner(ctx, []string{u.String()})
			return err
		})
		if err != nil && !errors.Is(err, rpctypes.ErrPeerURLExist) { // an earlier try was carried out
			return failed(err)
		}
		return Waiting, nil
	case m.Peer != peer:
		return failed(fmt.Errorf("the store has it at %s, and not at %s; run `atoll store remove %s` first", m.Peer, peer, site))
	case !m.Learner:
		return Voting, nil
	case !m.Started:
		return Waiting, nil
	}
	return c.promote(ctx, all, m)
}

func (c *Client) promote(ctx context.Context, all Membership, m Member) (Standing, error) {
	if all.Healthy+1 < quorum(all.Voters+1) {
		return "", fmt.Errorf("store: give member %s its vote: %w: of %d voters %d answer; start the others first", m.Site, ErrWouldLoseQuorum, all.Voters, all.Healthy)
	}
	var id uint64
	if _, err := fmt.Sscanf(m.ID, "%x", &id); err != nil {
		return "", fmt.Errorf("BUG: member id %q: %w", m.ID, err)
	}
	err := c.reconfigure(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		_, err := etcd.MemberPromote(ctx, id)
		return err
	})
	switch {
	case errors.Is(err, rpctypes.ErrMemberLearnerNotReady):
		return Learning, nil
	case err != nil && !errors.Is(err, rpctypes.ErrMemberNotLearner): // an earlier try was carried out
		return "", fmt.Errorf("store: give member %s its vote: %w", m.Site, err)
	}
	return Voting, nil
}

// RemoveMember takes a member out of the store. It is refused if the others that answer are no quorum of what is left;
// force sets that judgement aside, for voters that answer each other and not this client. etcd has one of its own.
func (c *Client) RemoveMember(ctx context.Context, site topo.SiteID, force bool) error {
	failed := func(err error) error { return fmt.Errorf("store: remove member %s: %w", site, err) }
	all, err := c.Members(ctx)
	switch {
	case err != nil:
		return failed(err)
	case all.Problem != "":
		return failed(fmt.Errorf("the store has no quorum to decide it; if it is lost for good, see `atoll store recover --help`: %s", all.Problem))
	}
	m, found := all.find(site, "")
	if !found {
		return failed(ErrNoMember)
	}
	if !m.Learner {
		voters, healthy := all.Voters-1, all.Healthy
		if m.Problem == "" {
			healthy--
		}
		switch {
		case voters == 0:
			return failed(errors.New("it is the only voter; add another one first"))
		case healthy < quorum(voters) && !force:
			return failed(fmt.Errorf("%w: of the %d other voters %d answer, and %d are needed; start them, or remove one that does not answer instead",
				ErrWouldLoseQuorum, voters, healthy, quorum(voters)))
		}
	}
	var id uint64
	if _, err := fmt.Sscanf(m.ID, "%x", &id); err != nil {
		return failed(fmt.Errorf("BUG: member id %q: %w", m.ID, err))
	}
	err = c.reconfigure(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		_, err := etcd.MemberRemove(ctx, id)
		return err
	})
	if err != nil && !errors.Is(err, rpctypes.ErrMemberNotFound) { // an earlier try was carried out
		return failed(err)
	}
	return nil
}

// reconfigure is do for changes of the membership, which take longer than a read. Each is safe to repeat: what was
// carried out is found by the error of the next try.
func (c *Client) reconfigure(ctx context.Context, call func(context.Context, *clientv3.Client) error) error {
	return c.doIn(ctx, 10*c.cfg.Try, call)
}

func (all Membership) find(site topo.SiteID, peer string) (Member, bool) {
	for _, m := range all.Members {
		if m.ID != "" && (m.Site == site || peer != "" && m.Peer == peer) {
			return m, true
		}
	}
	return Member{}, false
}
