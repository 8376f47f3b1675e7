package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/atollhq/atoll/sdk"
	"github.com/atollhq/atoll/topo"
)

// A service at site a that calls others of the deployment.
func ExampleTransport() {
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Atoll-Session", "1~users.17.5.a.16b3f48")
		fmt.Fprintf(w, "%s for %s, session %q", r.URL.Path, r.Header.Get("X-Customer"), r.Header.Get("Atoll-Session"))
	}))
	defer gateway.Close()

	// With a View (see ExampleView) requests go to the owner's site at once; without, through the local gateway.
	transport, err := sdk.NewTransport(sdk.TransportConfig{Local: []string{gateway.URL}})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second} // longer than a gateway may hold a request

	session := &sdk.Session{} // one per customer
	ctx := sdk.WithSession(context.Background(), session)
	for range 2 {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://shop/orders", nil)
		req.Header.Set("X-Customer", "17")
		resp, err := client.Do(req)
		if err != nil {
			fmt.Println(err, sdk.NotSent(err))
			return
		}
		var text [80]byte
		n, _ := resp.Body.Read(text[:])
		resp.Body.Close()
		fmt.Println(sdk.OutcomeOf(resp), string(text[:n]))
	}
	// Output:
	// answered /orders for 17, session "new"
	// answered /orders for 17, session "1~users.17.5.a.16b3f48"
}

// The view follows a gateway of this site, at its admin address.
func ExampleView() {
	view, err := sdk.NewView(sdk.ViewConfig{Site: "a", Gateways: []string{"http://127.0.0.1:8081"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- view.Run(ctx) }() // until the service stops

	_, err = view.Place("users", "17")
	fmt.Println(errors.Is(err, sdk.ErrNoView)) // no gateway runs here
	stop()
	fmt.Println(<-ended)
	// Output:
	// true
	// context canceled
}

// A job that one site at a time is to do for a customer.
func ExampleGuard() {
	view, err := sdk.NewView(sdk.ViewConfig{Site: "a", Gateways: []string{"http://127.0.0.1:8081"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	guard := sdk.NewGuard(view, sdk.DefaultLost)
	err = guard.Run(context.Background(), "users", "17", func(ctx context.Context, epoch topo.Epoch) error {
		// Ends when ctx does. What must not happen twice is written to this site's database, where the fence sees it.
		return ctx.Err()
	})
	var elsewhere *sdk.ElsewhereError
	switch {
	case errors.As(err, &elsewhere):
		fmt.Println("to do at", elsewhere.Owner)
	case err != nil:
		fmt.Println(err)
	}
	// Output: no view of the ownership yet; is a gateway of this site running, with an admin address?
}
