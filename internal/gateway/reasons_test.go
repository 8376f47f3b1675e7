package gateway

import (
	"net/http"
	"strings"
	"testing"

	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/sdk"
)

// What the SDK takes a reason for is what the answer's text says.
func TestReasonsMeanTheSameToTheSDK(t *testing.T) {
	t.Parallel()
	for reason, what := range refusals {
		outcome, again := sdk.ReasonOutcome(string(reason))
		nothing := strings.Contains(what.text, "nothing was done") || what.status < 500 && what.status != http.StatusRequestTimeout
		switch reason {
		case reasonNoView, route.UnknownKeyspace, reasonForwarded: // the texts have other things to say
			nothing = true
		}
		if nothing != (outcome == sdk.NotExecuted) || again && !nothing {
			t.Errorf("%s (%q): %s, again %v", reason, what.text, outcome, again)
		}
	}
	if outcome, _ := sdk.ReasonOutcome(""); outcome != sdk.Answered {
		t.Errorf("an answer without a reason: %s", outcome)
	}
}
