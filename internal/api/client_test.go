package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/atollhq/atoll/topo"
)

func clientOf(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c := NewClient(strings.TrimPrefix(srv.URL, "http://"), nil, nil)
	t.Cleanup(c.Close)
	return c
}

// TestErrorsSayWhatTheAgentSaid: code, hint and problems come through; whatever else comes, the caller gets words.
func TestErrorsSayWhatTheAgentSaid(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, body string
		code       string
		want       string
	}{
		{"refused", `{"code":"refused","message":"the switch is refused","problems":[{"check":"target-lag","site":"b","text":"9s behind","hint":"wait"}]}`,
			CodeRefused, "the switch is refused\n  target-lag at b: 9s behind; wait"},
		{"a proxy's page", "<html>Bad\x00Gateway\xff</html>", "unknown", "answered 502: <html>Bad\x00Gateway?</html>"},
		{"nothing", "", "unknown", "answered 502"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusBadGateway)
				_, _ = w.Write([]byte(c.body))
			})
			_, err := client.Switch(t.Context(), SwitchRequest{})
			var coded *Error
			if !errors.As(err, &coded) || coded.Code != c.code || coded.Status != 502 || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want code %s, %q", err, c.code, c.want)
			}
		})
	}
}

func TestAnswersThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ body, want string }{
		"not JSON":  {"hello", "answer is not as expected"},
		"too large": {`"` + strings.Repeat("x", MaxBody) + `"`, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(c.body)) })
			if _, err := client.Status(t.Context(), false); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := NewClient("127.0.0.1:1", nil, nil).Status(ctx, false)
	if err == nil || !strings.Contains(err.Error(), "agent 127.0.0.1:1 does not answer") {
		t.Errorf("error %v", err)
	}
}

func TestViewStreamOfAnotherFormat(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{"newer": `{"format":2}`, "none": `{}`, "garbage": "]"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(line + "\n")) })
			err := client.View(t.Context(), "g1", func(ViewUpdate) error { t.Error("the line was passed on"); return nil })
			if err == nil || (name == "newer") != errors.Is(err, topo.ErrNewerFormat) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// FuzzDecodeError: an error answer may hold anything; what comes out can be printed.
func FuzzDecodeError(f *testing.F) {
	f.Add(503, []byte(`{"code":"unavailable","message":"the store does not answer","hint":"x","problems":[{"check":"a","site":"b","text":"c"}]}`))
	f.Add(502, []byte("<html>\xff"))
	f.Fuzz(func(t *testing.T, status int, data []byte) {
		e := decodeError(status, data)
		if e.Error() == "" || e.Status != status || !utf8.ValidString(e.Error()) {
			t.Errorf("error %q of status %d", e.Error(), e.Status)
		}
	})
}
