package agent

import (
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/internal/replicate"
)

// TestLinkStanding: what another site said over a link counts as long as the link lives, and ages meanwhile.
func TestLinkStanding(t *testing.T) {
	t.Parallel()
	serving := link.Statement{Serving: true, RemainingMS: 1500}
	for _, c := range []struct {
		name    string
		known   bool
		state   replicate.OriginState
		heard   time.Duration // ago; 0: never
		silence time.Duration // as the database says
		want    api.Standing
	}{
		{"live", true, replicate.OriginState{Phase: replicate.Streaming, Says: serving, Lag: 30 * time.Millisecond}, 400 * time.Millisecond, time.Hour,
			api.Standing{Linked: true, Serving: true, HeardMS: 400, RemainingMS: 1100, LossMS: 400}},
		{"behind", true, replicate.OriginState{Phase: replicate.Streaming, Says: serving, Lag: 5 * time.Second}, 400 * time.Millisecond, 0,
			api.Standing{Linked: true, Serving: true, HeardMS: 400, RemainingMS: 1100, LossMS: 5000}},
		{"silent", true, replicate.OriginState{Phase: replicate.Streaming, Says: serving}, 4 * time.Second, 0, api.Standing{HeardMS: 4000, LossMS: 4000}},
		{"broken", true, replicate.OriginState{Phase: replicate.Retrying, Says: serving}, 600 * time.Millisecond, 0,
			api.Standing{HeardMS: 600, RemainingMS: 900, LossMS: 600}},
		{"closed", true, replicate.OriginState{Phase: replicate.Streaming, Says: link.Statement{Closed: "h1"}}, 600 * time.Millisecond, 0,
			api.Standing{Linked: true, HeardMS: 600, Closed: "h1", LossMS: 600}},
		{"not heard since this agent started", true, replicate.OriginState{Phase: replicate.Retrying}, 0, 9 * time.Second, api.Standing{HeardMS: -1, LossMS: 9000}},
		{"never had anything of it", false, replicate.OriginState{Phase: replicate.Connecting}, 0, 0, api.Standing{HeardMS: -1, LossMS: -1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.heard > 0 {
				c.state.Heard = time.Now().Add(-c.heard)
			}
			got := api.Standing{Known: c.known, HeardMS: -1, WroteMS: -1, LossMS: -1}
			linkStanding(&got, c.state, c.silence)
			near := func(got, want int64) bool { return want <= 0 && got == want || got-want < 200 && want-got < 200 }
			if got.Linked != c.want.Linked || got.Serving != c.want.Serving || got.Closed != c.want.Closed || got.WroteMS != -1 ||
				!near(got.HeardMS, c.want.HeardMS) || !near(got.RemainingMS, c.want.RemainingMS) || !near(got.LossMS, c.want.LossMS) {
				t.Errorf("got %+v; want %+v", got, c.want)
			}
		})
	}
}
