package dashboard

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// shownHandovers are few: the page is about now.
const shownHandovers = 8

// share is a width, of a thousand.
type share int

// Percent is the share as SVG takes it.
func (s share) Percent() string { return fmt.Sprintf("%d.%d%%", s/10, s%10) }

// content is the page, ready for its template: every text is final.
type content struct {
	Deployment, Site string
	At               time.Time
	AtMS             int64
	Version          string
	Problems         []string
	Sites            []siteCard
	Keyspaces        []keyspaceBar
	Tails            []tail
	Links            []linkRow
	Handovers        []handoverRow
}

type siteCard struct {
	Name, Colour string
	State, Tone  string // tone: good, warn, bad
	Silent       string // why it does not answer; then nothing below is known
	Lease        meter
	Database     string
	View         string
	Since        string
	Gateways     []gatewayRow
}

type meter struct {
	Width share
	Text  string
	Tone  string
}

type gatewayRow struct{ Name, Text, Tone string }

type keyspaceBar struct {
	Name     string
	Buckets  string
	Segments []segment
	Owners   []ownerRow
}

type segment struct {
	X, Width share
	Colour   string
	Moving   bool
	Title    string
}

type ownerRow struct {
	Site, Colour          string
	Count, Epochs, Ranges string
	Moving                bool
}

type tail struct{ Handover, Text string }

type linkRow struct{ From, To, FromColour, ToColour, State, Tone, Lag, Position, Note string }

type handoverRow struct {
	ID, Kind, From, To, FromColour, ToColour string
	State, Tone                              string
	What, When, Pause                        string
	Phases                                   []phase
	Notes                                    []note
}

type phase struct {
	Name, After string
	Now         bool
}

type note struct{ Name, Text string }

// look turns a status into what is shown.
func look(st api.Status) content {
	v := viewer{st: st, colour: map[topo.SiteID]string{}}
	for i, s := range st.Sites {
		v.colour[s.Site] = fmt.Sprintf("s%d", i%6)
	}
	out := content{Deployment: st.Deployment, Site: string(st.Site), At: st.At.UTC(), AtMS: st.At.UnixMilli(), Version: "unknown", Problems: st.Problems}
	for _, s := range st.Sites {
		out.Sites = append(out.Sites, v.site(s))
		for _, l := range s.Links {
			if l.Target == s.Site { // the target knows what it applied
				out.Links = append(out.Links, v.link(l))
			}
		}
	}
	if o := st.Ownership; o != nil {
		out.Version = fmt.Sprintf("%d.%d", o.Generation, o.Version)
		for _, k := range o.Keyspaces {
			out.Keyspaces = append(out.Keyspaces, v.keyspace(k))
		}
		for _, u := range o.Unsettled {
			out.Tails = append(out.Tails, tail{string(u.Handover), fmt.Sprintf("%s took %s from %s, up to position %s. What %s committed beyond is not decided yet; until then %s owns nothing more.",
				u.Owner, count(u.Buckets, "bucket"), u.Site, position(u.Position), u.Site, u.Site)})
		}
	}
	for _, h := range st.Handovers[:min(len(st.Handovers), shownHandovers)] {
		out.Handovers = append(out.Handovers, v.handover(h))
	}
	return out
}

// viewer is what all parts of a page share.
type viewer struct {
	st     api.Status
	colour map[topo.SiteID]string
}

func (v viewer) returning(site topo.SiteID) bool {
	return v.st.Ownership != nil && slices.ContainsFunc(v.st.Ownership.Unsettled, func(u api.UnsettledStatus) bool { return u.Site == site })
}

func (v viewer) site(s api.SiteStatus) siteCard {
	card := siteCard{Name: string(s.Site), Colour: v.colour[s.Site]}
	switch {
	case s.Error != "":
		card.State, card.Tone, card.Silent = "does not answer", "bad", s.Error
		return card
	case v.returning(s.Site):
		card.State, card.Tone = "returning", "warn"
	case s.Keeper != nil && s.Keeper.Rebuild:
		card.State, card.Tone = "to be rebuilt", "warn"
	case s.Standby && !s.Lease.Live:
		card.State, card.Tone = "no active agent", "bad"
	case s.Lease.Live && s.Database.Connected:
		card.State, card.Tone = "serving", "good"
	default:
		card.State, card.Tone = "accepts no writes", "bad"
	}
	card.Lease = leaseMeter(s.Lease)
	card.Database = "connected"
	if !s.Database.Connected {
		card.Database = "away"
	}
	card.View = fmt.Sprintf("%d, fence at %d", s.Version, s.Opened)
	if s.Opened >= s.Version {
		card.View = fmt.Sprintf("%d", s.Version)
	}
	if !s.Since.IsZero() {
		card.Since = age(v.st.At.Sub(s.Since))
	}
	for _, g := range s.Gateways {
		card.Gateways = append(card.Gateways, gateway(g, s.Version))
	}
	return card
}

func leaseMeter(l api.LeaseStatus) meter {
	if !l.Live {
		return meter{Text: "not in force", Tone: "bad"}
	}
	left := max(l.RemainingMS, 0)
	m := meter{Width: 1000, Text: seconds(left), Tone: "good"}
	if l.DurationMS > 0 {
		m.Width = share(min(left*1000/l.DurationMS, 1000))
		m.Text += " of " + seconds(l.DurationMS)
		if m.Width < 333 { // a renewal comes every third of the duration: two have not come
			m.Tone = "warn"
		}
	}
	return m
}

func gateway(g api.GatewayStatus, version uint64) gatewayRow {
	row := gatewayRow{Name: g.Gateway, Text: fmt.Sprintf("view %d", g.Version), Tone: "good"}
	switch {
	case !g.Connected:
		row.Text, row.Tone = "gone for "+age(time.Duration(g.SeenMS)*time.Millisecond), "warn"
	case g.Version < version:
		row.Text, row.Tone = fmt.Sprintf("view %d, behind", g.Version), "warn"
	}
	inFlight := 0
	for _, n := range g.InFlight {
		inFlight += n
	}
	if inFlight > 0 {
		row.Text += ", " + count(inFlight, "write") + " under way"
	}
	return row
}

func (v viewer) keyspace(k api.KeyspaceStatus) keyspaceBar {
	bar := keyspaceBar{Name: string(k.Keyspace), Buckets: count(k.Buckets, "bucket")}
	moving := map[topo.SiteID]int{}
	for _, m := range k.Moving {
		if spans, err := topo.ParseSpans(m.Buckets, k.Buckets); err == nil {
			moving[m.From] += spans.Len()
		}
	}
	var parts []segment // Width is a count of buckets until they are laid out
	for _, o := range k.Owners {
		colour := v.colour[o.Site]
		still := max(o.Count-moving[o.Site], 0)
		if still > 0 {
			parts = append(parts, segment{Width: share(still), Colour: colour, Title: fmt.Sprintf("%s owns %d", o.Site, still)})
		}
		if n := o.Count - still; n > 0 {
			parts = append(parts, segment{Width: share(n), Colour: colour, Moving: true, Title: fmt.Sprintf("%d move away from %s", n, o.Site)})
		}
		bar.Owners = append(bar.Owners, ownerRow{Site: string(o.Site), Colour: colour, Count: thousands(o.Count), Epochs: epochs(o), Ranges: shorten(strings.ReplaceAll(o.Buckets, ",", ", "), 60)})
	}
	for _, m := range k.Moving {
		bar.Owners = append(bar.Owners, ownerRow{Site: fmt.Sprintf("%s → %s", m.From, m.To), Colour: v.colour[m.From], Count: "moving", Ranges: shorten(strings.ReplaceAll(m.Buckets, ",", ", "), 60), Moving: true})
	}
	bar.Segments = layOut(parts, k.Buckets)
	return bar
}

// layOut gives every part its share of a thousand, but what is there must be seen: at least eight.
func layOut(parts []segment, buckets int) []segment {
	const least = 8
	total := share(0)
	for i := range parts {
		parts[i].Width = max(parts[i].Width*1000/share(max(buckets, 1)), least)
		total += parts[i].Width
	}
	if len(parts) == 0 {
		return nil
	}
	widest := slices.MaxFunc(parts, func(a, b segment) int { return cmp.Compare(a.Width, b.Width) }).Width
	for i := range parts { // the widest takes what rounding left
		if parts[i].Width == widest {
			parts[i].Width = max(parts[i].Width+1000-total, least)
			break
		}
	}
	x := share(0)
	for i := range parts {
		parts[i].X = x
		x += parts[i].Width
	}
	return parts
}

func epochs(o api.OwnerStatus) string {
	if o.MinEpoch == o.MaxEpoch {
		return fmt.Sprintf("epoch %d", o.MinEpoch)
	}
	return fmt.Sprintf("epochs %d to %d", o.MinEpoch, o.MaxEpoch)
}

func (v viewer) link(l api.LinkStatus) linkRow {
	row := linkRow{From: string(l.Origin), To: string(l.Target), FromColour: v.colour[l.Origin], ToColour: v.colour[l.Target],
		State: cmp.Or(l.State, "connected"), Tone: "good", Lag: "–", Position: position(l.Position), Note: l.Error}
	if l.LagMS >= 0 {
		row.Lag = milliseconds(float64(l.LagMS))
	}
	switch {
	case l.Halted != "":
		row.State, row.Tone, row.Note = "halted", "warn", "nothing more is applied, for failover "+string(l.Halted)
	case !l.Connected:
		row.State, row.Tone = cmp.Or(l.State, "down"), "bad"
	}
	return row
}

// The texts of numbers. All of them are aligned by the page's tabular figures.

func seconds(ms int64) string { return fmt.Sprintf("%.1f s", float64(ms)/1000) }

func milliseconds(ms float64) string {
	switch {
	case ms < 5000:
		return thousands(int(ms+0.5)) + " ms"
	case ms < 120_000:
		return fmt.Sprintf("%.1f s", ms/1000)
	}
	return age(time.Duration(ms) * time.Millisecond)
}

func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// position is a place in a change stream as PostgreSQL writes it.
func position(p uint64) string { return fmt.Sprintf("%X/%X", p>>32, uint32(p)) }

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return thousands(n) + " " + noun + "s"
}

// thousands sets a thin space between groups of digits.
func thousands(n int) string {
	s := fmt.Sprint(n)
	if len(s) < 5 {
		return s
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u2009" + s[i:]
	}
	return s
}

func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
