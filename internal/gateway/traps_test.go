package gateway

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// tell answers with what an application sees of a request.
func tell(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%s %s %s\nHost: %s\nbody %q\n", r.Method, r.RequestURI, r.Proto, r.Host, body)
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		fmt.Fprintf(w, "%s: %s\n", name, strings.Join(r.Header[name], " | "))
	}
	for name, v := range r.Trailer {
		fmt.Fprintf(w, "trailer %s: %s\n", name, v)
	}
}

// rawly sends bytes over a connection of their own and reads one answer, or none.
func rawly(t testing.TB, addr, text string) (status int, body string, rest *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	must0(err)
	t.Cleanup(func() { _ = conn.Close() })
	must0(conn.SetDeadline(time.Now().Add(20 * time.Second)))
	_, _ = conn.Write([]byte(text)) // a server that has seen enough may close before the end
	rest = bufio.NewReader(conn)
	resp, err := http.ReadResponse(rest, nil)
	if err != nil {
		return 0, "", rest
	}
	text2, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode, string(text2), rest
}

// The traps of parsing and forwarding, each with what this gateway makes of it; docs/gateway-traps.md says why.
func TestTraps(t *testing.T) {
	t.Parallel()
	a := alone(t, http.HandlerFunc(tell), func(c *Config) {
		c.Routes = append([]topo.Route{{Name: "by", Path: "/by", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Cookie: "user"}, {Query: "user"}}, WithoutKey: topo.RefuseKeyless}}, c.Routes...)
	})
	key := keyIn(0)
	head := func(lines ...string) string {
		return strings.Join(append(lines, "Host: shop.example", "X-User: "+key, "", ""), "\r\n")
	}
	post := func(lines ...string) string {
		return strings.Join(append([]string{"POST /users HTTP/1.1", "Host: shop.example", "X-User: " + key}, lines...), "\r\n")
	}
	chunks := func(body string, lines ...string) string {
		return post(append(lines, "Transfer-Encoding: chunked", "", body)...)
	}
	for name, c := range map[string]struct {
		send   string
		status int    // 0: the connection is closed without an answer
		seen   string // by the application
		unseen string
	}{
		// Headers that a client takes from the gateway, or gives in its name.
		"Connection names our headers":   {head("GET /users HTTP/1.1", "connection: x-forwarded-for, X-Forwarded-Host, x-user", "X-Forwarded-For: 6.6.6.6"), 200, "X-Forwarded-For: 127.0.0.1\nX-Forwarded-Host: shop.example\n", "6.6.6.6"},
		"Connection names the key":       {head("GET /users HTTP/1.1", "Connection: X-User"), 200, "X-User: " + key, ""},
		"Connection names a hop header":  {head("GET /users HTTP/1.1", "Connection: X-Hop", "X-Hop: 1"), 200, "", "X-Hop"},
		"key in another spelling":        {head("GET /users HTTP/1.1", "X_User: other", "X.User: other", "x_uSER: other"), 200, "X-User: " + key, "other"},
		"address in another spelling":    {head("GET /users HTTP/1.1", "X_Forwarded_For: 6.6.6.6", "X.Forwarded.For: 6.6.6.6", "x-forwarded_for: 6.6.6.6"), 200, "X-Forwarded-For: 127.0.0.1\n", "6.6.6.6"},
		"our headers":                    {head("GET /users HTTP/1.1", "Atoll-Bucket: 6.6", "atoll_bucket: 6.6", "Atoll.Bucket: 6.6", "Atoll-Certificate: cn=6.6"), 200, "X-User", "6.6"},
		"port, prefix, rewritten target": {head("GET /users HTTP/1.1", "X-Forwarded-Port: 666", "X-Forwarded-Prefix: /666", "X-Original-URL: /666", "X-Rewrite-Url: /666", "X-Real-IP: 6.6.6.6", "Forwarded: for=6.6.6.6;port=666"), 200, "X-Forwarded-Proto: http\n", "666"},
		"client's certificate":           {head("GET /users HTTP/1.1", "X-Forwarded-Client-Cert: Subject=666"), 200, "X-User", "666"},
		"key twice":                      {head("GET /users HTTP/1.1", "X-User: other"), 400, "", ""},
		"key's cookie twice":             {head("GET /by HTTP/1.1", "Cookie: user="+key+"; user=other"), 400, "", ""},
		"key in two cookie headers":      {head("GET /by HTTP/1.1", "Cookie: user="+key, "cookie: user=other"), 400, "", ""},
		"key's parameter twice":          {head("GET /by?user=" + key + "&u%73er=other HTTP/1.1"), 400, "", ""},
		"cookie before parameter":        {head("GET /by?user="+keyIn(9)+" HTTP/1.1", "Cookie: user="+key), 200, "GET /by?user=" + keyIn(9) + " HTTP", ""},
		"nor the other way round":        {head("GET /by?user="+key+" HTTP/1.1", "Cookie: user="+keyIn(9)), 503, "", ""}, // b's, which nobody reaches here
		"two Hosts":                      {head("GET /users HTTP/1.1", "Host: other.example"), 400, "", ""},
		"no Host":                        {"GET /users HTTP/1.1\r\n\r\n", 400, "", ""},
		"odd Host":                       {"GET /users HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "", ""},

		// Targets.
		"encoded slash":         {head("GET /users/a%2Fb HTTP/1.1"), 200, "GET /users/a%2Fb HTTP", ""},
		"encoded slash, prefix": {head("GET /users%2Fa HTTP/1.1"), 200, "GET /users%2Fa HTTP", ""},
		"dot segments":          {head("GET /users/../admin HTTP/1.1"), 400, "", ""},
		"encoded dots":          {head("GET /users/%2e%2E/admin HTTP/1.1"), 400, "", ""},
		"half encoded dot":      {head("GET /users/.%2e HTTP/1.1"), 400, "", ""},
		"dots with parameter":   {head("GET /users/..;x=1/admin HTTP/1.1"), 400, "", ""},
		"dots twice encoded":    {head("GET /users/%252e%252e/x HTTP/1.1"), 200, "GET /users/%252e%252e/x HTTP", ""},
		"backslashes":           {head(`GET /users/a\..\b HTTP/1.1`), 200, `GET /users/a%5C..%5Cb HTTP`, ""},
		"empty segments":        {head("GET //users//x HTTP/1.1"), 200, "GET //users//x HTTP", ""},
		"NUL":                   {head("GET /users/%00 HTTP/1.1"), 200, "GET /users/%00 HTTP", ""},
		"broken encoding":       {head("GET /users/%zz HTTP/1.1"), 400, "", ""},
		"fragment":              {head("GET /users/a#b HTTP/1.1"), 200, "GET /users/a%23b HTTP", ""},
		"absolute":              {"GET http://real.example/users HTTP/1.1\r\nHost: other.example\r\nX-User: " + key + "\r\n\r\n", 200, "GET /users HTTP/1.1\nHost: real.example", "other.example"},
		"opaque":                {head("GET users:abc HTTP/1.1"), 400, "", ""},
		"star":                  {head("OPTIONS * HTTP/1.1"), 400, "", ""},
		"authority":             {"CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\n\r\n", 400, "", ""},
		"control character":     {head("GET /users/\x01 HTTP/1.1"), 400, "", ""},

		// Where a request ends.
		"length and chunks":         {chunks("3\r\nabc\r\n0\r\n\r\n", "Content-Length: 99"), 200, `body "abc"`, "99"},
		"chunks, then length":       {post("Transfer-Encoding: chunked", "Content-Length: 3", "", "3\r\nabc\r\n0\r\n\r\n"), 200, `body "abc"`, ""},
		"two lengths":               {post("Content-Length: 3", "Content-Length: 4", "", "abcd"), 400, "", ""},
		"one length twice":          {post("Content-Length: 3", "Content-Length: 3", "", "abc"), 200, `body "abc"`, ""},
		"list of lengths":           {post("Content-Length: 3, 3", "", "abc"), 400, "", ""},
		"signed length":             {post("Content-Length: +3", "", "abc"), 400, "", ""},
		"negative length":           {post("Content-Length: -3", "", "abc"), 400, "", ""},
		"hexadecimal length":        {post("Content-Length: 0x3", "", "abc"), 400, "", ""},
		"empty length":              {post("Content-Length:", "", "abc"), 400, "", ""},
		"other encoding":            {post("Transfer-Encoding: xchunked", "", "abc"), 501, "", ""},
		"two encodings":             {post("Transfer-Encoding: gzip, chunked", "", "0\r\n\r\n"), 501, "", ""},
		"chunked twice":             {post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", "", "0\r\n\r\n"), 501, "", ""},
		"identity":                  {post("Transfer-Encoding: identity", "Content-Length: 3", "", "abc"), 501, "", ""},
		"chunked in HTTP/1.0":       {strings.Replace(chunks("3\r\nabc\r\n0\r\n\r\n"), "HTTP/1.1", "HTTP/1.0", 1), 200, "", "abc"},
		"chunk extension":           {chunks("3;x=\"y\"\r\nabc\r\n0\r\n\r\n"), 200, `body "abc"`, ""},
		"chunk size 0x3":            {chunks("0x3\r\nabc\r\n0\r\n\r\n"), 408, "", ""},
		"chunk size -3":             {chunks("-3\r\nabc\r\n0\r\n\r\n"), 408, "", ""},
		"chunk size missing":        {chunks("\r\nabc\r\n0\r\n\r\n"), 408, "", ""},
		"chunk size beyond 64 bits": {chunks("10000000000000003\r\nabc\r\n0\r\n\r\n"), 408, "", ""},
		"chunk without its end":     {chunks("3\r\nabcX\r\n0\r\n\r\n"), 408, "", ""},
		"chunk line with LF alone":  {chunks("3\nabc\r\n0\r\n\r\n"), 408, "", ""},
		"chunk extension with LF":   {chunks("3;a\nb\r\nabc\r\n0\r\n\r\n"), 408, "", ""},
		"trailers":                  {chunks("3\r\nabc\r\n0\r\nX-User: other\r\nX-T: 1\r\n\r\n", "Trailer: X-T"), 200, `body "abc"`, "railer"},
		"body of a GET":             {head("GET /users HTTP/1.1", "Content-Length: 3") + "abc", 200, `body "abc"`, ""},

		// Lines.
		"LF alone":               {"GET /users HTTP/1.1\nHost: shop.example\nX-User: " + key + "\n\n", 200, "X-User: " + key, ""},
		"CR alone":               {head("GET /users HTTP/1.1", "X-A: b\rX-User: other"), 400, "", ""},
		"folded line":            {head("GET /users HTTP/1.1", "X-A: b", " X-Other: c"), 200, "X-A: b X-Other: c\n", ""},
		"first line folded":      {head("GET /users HTTP/1.1", " X-A: b"), 400, "", ""},
		"space before the colon": {head("GET /users HTTP/1.1", "X-User : other"), 400, "", ""},
		"empty name":             {head("GET /users HTTP/1.1", ": x"), 400, "", ""},
		"no colon":               {head("GET /users HTTP/1.1", "X-A"), 400, "", ""},
		"NUL in a value":         {head("GET /users HTTP/1.1", "X-A: \x00"), 400, "", ""},
		"name that is no token":  {head("GET /users HTTP/1.1", "X(A): 1"), 400, "", ""},
		"head without end":       {head("GET /users HTTP/1.1", "X-A: "+strings.Repeat("x", 70<<10)), 431, "", ""},
		"HTTP/0.9":               {"GET /users\r\n\r\n", 400, "", ""},
		"HTTP/3.0":               {head("GET /users HTTP/3.0"), 505, "", ""},

		// Other protocols.
		"h2c upgrade":       {head("GET /users HTTP/1.1", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), 200, "HTTP/1.1", "ttp2"},
		"h2c, not named":    {head("GET /users HTTP/1.1", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), 200, "HTTP/1.1", "ttp2"},
		"PROXY from anyone": {"PROXY TCP4 6.6.6.6 127.0.0.1 1 2\r\n" + head("GET /users HTTP/1.1"), 400, "", ""},
		"TLS to plain HTTP": {"\x16\x03\x01\x00\x05hello", 400, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status, body, _ := rawly(t, a.gw.UserAddr(), c.send)
			if status != c.status || !strings.Contains(body, c.seen) || c.unseen != "" && strings.Contains(body, c.unseen) {
				t.Errorf("got %d %q\nwant %d, with %q, without %q", status, body, c.status, c.seen, c.unseen)
			}
		})
	}
}

// What stands behind a request on its connection is the next request, whatever the first one's body said of its length.
func TestNothingIsSmuggled(t *testing.T) {
	t.Parallel()
	a := alone(t, http.HandlerFunc(tell), nil)
	const next = "GET /next HTTP/1.1\r\nHost: h\r\n\r\n"
	for name, first := range map[string]string{
		"length 0":          "POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
		"length and chunks": "POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"body in a GET":     "GET /first HTTP/1.1\r\nHost: h\r\nContent-Length: " + fmt.Sprint(len(next)) + "\r\n\r\n" + next,
	} {
		status, body, rest := rawly(t, a.gw.UserAddr(), first+next)
		if status != 200 || !strings.Contains(body, " /first ") {
			t.Fatalf("%s: %d %q", name, status, body)
		}
		resp, err := http.ReadResponse(rest, nil)
		if err != nil {
			continue // it closed the connection: nothing is read as another request
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(text), " /next ") {
			t.Errorf("%s: then %q", name, text)
		}
		if _, err := rest.Peek(1); err == nil && name == "body in a GET" {
			t.Errorf("%s: more answers than requests", name)
		}
	}
}

func TestClientAddress(t *testing.T) {
	t.Parallel()
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	for _, c := range []struct {
		remote string
		said   []string
		want   string
	}{
		{"192.0.2.1:9", []string{"6.6.6.6"}, "192.0.2.1"},
		{"10.0.0.1:9", nil, "10.0.0.1"},
		{"10.0.0.1:9", []string{"6.6.6.6, 192.0.2.1"}, "192.0.2.1"},
		{"10.0.0.1:9", []string{"6.6.6.6,192.0.2.1", "10.1.1.1 , ::ffff:10.2.2.2"}, "192.0.2.1"},
		{"[2001:db8::1]:9", []string{"2001:db9::7"}, "2001:db9::7"},
		{"10.0.0.1:9", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"10.0.0.1:9", []string{"6.6.6.6, unknown, 10.0.0.2"}, "10.0.0.2"},
		{"@", nil, "@"},
	} {
		r := &http.Request{RemoteAddr: c.remote, Header: http.Header{"X-Forwarded-For": c.said}}
		if got := clientAddress(r, trusted); got != c.want {
			t.Errorf("%s, %q: %s, want %s", c.remote, c.said, got, c.want)
		}
	}
}

// A trusted proxy's word is kept and added to; only where it comes from a trusted proxy.
func TestTrustedProxies(t *testing.T) {
	t.Parallel()
	prefix := netip.MustParsePrefix
	for name, c := range map[string]struct {
		trusted []netip.Prefix
		send    []string
		seen    string
		unseen  string
	}{
		"trusted": {[]netip.Prefix{prefix("127.0.0.0/8")},
			[]string{"X-Forwarded-For: 1.2.3.4", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: shop.example", "X-Forwarded-Port: 443", "Forwarded: for=1.2.3.4;proto=https", "X-Real-IP: 1.2.3.4", "Connection: X-Forwarded-For"},
			"Forwarded: for=1.2.3.4;proto=https, for=127.0.0.1;host=\"h\";proto=http\n|X-Forwarded-For: 1.2.3.4, 10.0.0.1, 127.0.0.1\n|X-Forwarded-Host: shop.example\n|X-Forwarded-Proto: https\n|X-Forwarded-Port: 443\n|X-Real-Ip: 1.2.3.4\n", " | "},
		"trusted, aliases":      {[]netip.Prefix{prefix("127.0.0.1/32")}, []string{"X_Forwarded_For: 6.6.6.6"}, "X-Forwarded-For: 127.0.0.1\n", "6.6.6.6"},
		"trusted, odd words":    {[]netip.Prefix{prefix("127.0.0.1/32")}, []string{"X-Forwarded-Proto: gopher", "X-Forwarded-Host: a", "X-Forwarded-Host: b"}, "X-Forwarded-Host: h\n|X-Forwarded-Proto: http\n", "gopher"},
		"trusted, says nothing": {[]netip.Prefix{prefix("127.0.0.1/32")}, nil, "X-Forwarded-For: 127.0.0.1\n|X-Forwarded-Host: h\n|X-Forwarded-Proto: http\n", "\nForwarded"},
		"not trusted":           {[]netip.Prefix{prefix("10.0.0.0/8")}, []string{"X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Forwarded-Proto: https"}, "X-Forwarded-For: 127.0.0.1\n|X-Forwarded-Proto: http\n", "6.6.6.6"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := alone(t, http.HandlerFunc(tell), func(conf *Config) { conf.Listen.Trusted = c.trusted })
			status, body, _ := rawly(t, a.gw.UserAddr(), strings.Join(append([]string{"GET /x HTTP/1.1", "Host: h"}, append(c.send, "", "")...), "\r\n"))
			for want := range strings.SplitSeq(c.seen, "|") {
				if status != 200 || !strings.Contains(body, want) || strings.Contains(body, c.unseen) {
					t.Errorf("got %d %q\nwant %q, without %q", status, body, want, c.unseen)
				}
			}
		})
	}
}
