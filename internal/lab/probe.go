package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// probe asks a gateway for the shop's events, as any user may.
func probe(ctx context.Context, gateway string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+gateway+"/events", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return fmt.Errorf("GET /events: %s: %s", resp.Status, body)
	}
	return nil
}
