package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Instances of a service register themselves at the agents of their site, at each for itself, and renew that before their
// time runs out. To renew is to register again. Gateways follow the list.

// MaxInstances bounds the instances of one service.
const MaxInstances = 1000

// MaxWeight bounds an instance's weight, here and in the spec.
const MaxWeight = 1000

// maxHost is the longest name that DNS has.
const maxHost = 253

// Instance is one place where a service is reached.
type Instance struct {
	Address string `json:"address"` // host:port, as gateways reach it
	Zone    string `json:"zone,omitempty"`
	Weight  int    `json:"weight,omitempty"` // 0 means 1
}

// RegisterRequest is the body of POST /v1/services/register.
type RegisterRequest struct {
	Service string `json:"service"` // the upstream's name; the certificate's, too
	Instance
	TTLMS int64 `json:"ttl_ms,omitempty"` // 0: as long as the agent allows
}

// RegisterAnswer says for how long the instance is registered, from the request on.
type RegisterAnswer struct {
	TTLMS int64 `json:"ttl_ms"`
}

// LeaveRequest is the body of POST /v1/services/leave: the instance takes no more requests.
type LeaveRequest struct {
	Service string `json:"service"`
	Address string `json:"address"`
}

// LeaveAnswer says whether the agent knew the instance. That it did not is no error: it may have been started just now.
type LeaveAnswer struct {
	Known bool `json:"known"`
}

// Registered is an instance as an agent knows it.
type Registered struct {
	Instance
	RemainingMS int64 `json:"remaining_ms"` // of its time; < 0: silent for so long beyond it
}

// InstanceList is what an agent knows of the instances of a service: the answer of
// GET /v1/services/NAME?after=VERSION&wait=20s, which comes as soon as there is another version than after, or at the end of
// the wait. Versions have no order.
type InstanceList struct {
	Service string `json:"service"`
	Version string `json:"version"`
	// Complete: whoever is not named is not there. Else the agent is new, or nobody was heard for a while: who is not named may
	// be there all the same, unless it is in Left.
	Complete  bool         `json:"complete"`
	Instances []Registered `json:"instances"`      // in order of address
	Left      []string     `json:"left,omitempty"` // addresses of those who have said that they go; only where not Complete
}

// ServiceList is the answer of GET /v1/services: every service of the site whose instances register themselves.
type ServiceList struct {
	Services []InstanceList `json:"services"` // in order of name
}

// Check refuses what no gateway could use, and says what it wants instead.
func (i Instance) Check() error {
	if err := CheckAddress(i.Address); err != nil {
		return err
	}
	if i.Zone != "" {
		if err := topo.CheckName(i.Zone); err != nil {
			return fmt.Errorf("zone: %w", err)
		}
	}
	if i.Weight < 0 || i.Weight > MaxWeight {
		return fmt.Errorf("weight %d: want 1 to %d, relative to the service's other instances", i.Weight, MaxWeight)
	}
	return nil
}

// CheckAddress refuses what is not where one instance is reached. An address that only its own host knows (loopback) is taken:
// gateways may be there. Link-local ones are not: cloud platforms give their machines' secrets away there.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil || n == 0 || host == "" || len(host) > maxHost {
		return fmt.Errorf("address %.80q: want HOST:PORT as gateways reach the instance, for example 10.0.0.5:9000", address)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap()
		if ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return fmt.Errorf("address %.80q: %s is not where gateways reach one instance; say the host's own address", address, host)
		}
		return nil
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return fmt.Errorf("address %.80q: %.80q is neither an IP address nor a host name", address, host)
		}
	}
	return nil
}

// Check refuses a list that an agent would not send.
func (l InstanceList) Check() error {
	if l.Version == "" || len(l.Version) > 100 {
		return fmt.Errorf("version %.100q: want 1 to 100 bytes", l.Version)
	}
	if len(l.Instances) > MaxInstances || len(l.Left) > MaxInstances {
		return fmt.Errorf("%d instances and %d that left; a service has at most %d", len(l.Instances), len(l.Left), MaxInstances)
	}
	for n, i := range l.Instances {
		if err := i.Check(); err != nil {
			return fmt.Errorf("instance %d: %w", n+1, err)
		}
	}
	for n, address := range l.Left {
		if err := CheckAddress(address); err != nil {
			return fmt.Errorf("left, %d: %w", n+1, err)
		}
	}
	return nil
}

// Register registers an instance, or renews it.
func (c *Client) Register(ctx context.Context, r RegisterRequest) (RegisterAnswer, error) {
	return call[RegisterAnswer](ctx, c, http.MethodPost, "/v1/services/register", r)
}

// Leave says that an instance takes no more requests.
func (c *Client) Leave(ctx context.Context, r LeaveRequest) (LeaveAnswer, error) {
	return call[LeaveAnswer](ctx, c, http.MethodPost, "/v1/services/leave", r)
}

// Instances reads the instances of a service as soon as there is another version than after, or when the wait is over.
func (c *Client) Instances(ctx context.Context, service, after string, wait time.Duration) (InstanceList, error) {
	query := url.Values{"after": {after}, "wait": {wait.String()}}
	return call[InstanceList](ctx, c, http.MethodGet, "/v1/services/"+url.PathEscape(service)+"?"+query.Encode(), nil)
}

// Services lists every service whose instances register themselves.
func (c *Client) Services(ctx context.Context) ([]InstanceList, error) {
	list, err := call[ServiceList](ctx, c, http.MethodGet, "/v1/services", nil)
	return list.Services, err
}
