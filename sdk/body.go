package sdk

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
)

// outgoing is a request's body on its way through attempts. Whoever calls RoundTrip is owed that the body is closed, and a
// transport closes it after an attempt that sent nothing; so its closing waits until no attempt can follow.
type outgoing struct {
	src     io.ReadCloser // nil without a body
	getBody func() (io.ReadCloser, error)
	mu      struct {
		sync.Mutex
		taken  bool // an attempt got a connection, and may read it at any time from then on
		asked  bool // the last attempt closed it
		last   bool // no attempt follows
		closed bool
	}
}

func newOutgoing(req *http.Request) *outgoing {
	o := &outgoing{getBody: req.GetBody}
	if req.Body != nil && req.Body != http.NoBody {
		o.src = req.Body
	}
	return o
}

var errBodyGone = errors.New("the body was read, and there is no GetBody to send it again")

// request makes the request of one attempt.
func (o *outgoing) request(req *http.Request, base *url.URL, session *Session) (*http.Request, error) {
	out := outbound(req, base, session)
	if o.src == nil {
		return out, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.mu.taken {
		o.mu.asked = false
		out.Body, out.GetBody = o, o.getBody
		return out, nil
	}
	if o.getBody == nil {
		return nil, errBodyGone
	}
	var err error
	out.Body, err = o.getBody()
	return out, err
}

// take notes that an attempt got a connection.
func (o *outgoing) take() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.taken = true
}

// again tells whether another attempt can be made.
func (o *outgoing) again() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.src == nil || !o.mu.taken || o.getBody != nil
}

// accept leaves the body to the attempt that was answered.
func (o *outgoing) accept() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.last = true
}

// end closes what no attempt will close. Without accept, none is under way that could.
func (o *outgoing) end() {
	o.mu.Lock()
	answered, asked := o.mu.last, o.mu.asked
	o.mu.last = true
	o.mu.Unlock()
	if !answered || asked {
		o.close()
	}
}

func (o *outgoing) close() error {
	o.mu.Lock()
	was := o.mu.closed
	o.mu.closed = true
	o.mu.Unlock()
	if was || o.src == nil {
		return nil
	}
	return o.src.Close()
}

func (o *outgoing) Read(p []byte) (int, error) { return o.src.Read(p) }

func (o *outgoing) Close() error {
	o.mu.Lock()
	o.mu.asked = true
	through := o.mu.last || o.mu.taken
	o.mu.Unlock()
	if through {
		return o.close()
	}
	return nil
}
