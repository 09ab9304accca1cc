// Package webroute is the arithmetic of the web proxy that the control floor and the host
// share: which port of which sandbox a request means, how what an application says about
// its own addresses is put under a path prefix and taken off it again, and what a request
// that cannot be served is answered. It must not know floors, connections or sandboxes:
// nothing here waits, looks anything up or keeps anything.
package webroute

import (
	"strconv"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// root is where the ports of sandboxes begin among the paths of a listener.
const root = "/proxy/"

// wholeRoot is where they begin for applications that know under what path they are shown,
// and therefore expect it in what they are asked.
const wholeRoot = "/absproxy/"

// EnvdPort is where the guest daemon listens in every sandbox.
const EnvdPort = 49983

// HeaderProblem marks an answer that comes from the proxy itself and not from the
// application; its value is the Problem's Kind. What an application sends under this name
// is dropped.
const HeaderProblem = "Wrenn-Proxy-Problem"

// Target is a port of a sandbox.
type Target struct {
	Sandbox string
	Port    uint16 // never 0
}

// Prefix is the path under which the target's own paths are found, without a slash at the
// end.
func (t Target) Prefix() string { return Prefix(t.Sandbox, int(t.Port)) }

// Prefix is the path under which a port of a sandbox is found, without a slash at the end.
func Prefix(sandbox string, port int) string { return root + sandbox + "/" + strconv.Itoa(port) }

// The messages are those that clients of E2B know.
var (
	errHost    = fault.New(fault.InvalidRequest, "Invalid host")
	errPort    = fault.New(fault.InvalidRequest, "Invalid sandbox port")
	errSandbox = fault.New(fault.InvalidRequest, "Invalid sandbox ID")
)

// maxID is the longest id that can be part of a host name, in bytes.
const maxID = 63

// Parse reads a port and a sandbox's id as they are named in a host name, a header or a
// path. It errs with fault.InvalidRequest.
func Parse(port, sandbox string) (Target, error) {
	n, ok := parsePort(port)
	if !ok {
		return Target{}, errPort
	}
	if !validID(sandbox) {
		return Target{}, errSandbox
	}
	return Target{Sandbox: sandbox, Port: n}, nil
}

// parsePort takes each port in one spelling only, so that none has two origins.
func parsePort(s string) (uint16, bool) {
	if s == "" || s[0] < '1' || s[0] > '9' { // ParseUint takes leading zeros
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}

func validID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// ParseHost reads the Host of a request, {port}-{sandbox}.{domain}, whatever its case, its
// port, and the dot at its end. ours is false when it is not such a name, so that the
// request is for somebody else. One that is and names no port of a sandbox is
// fault.InvalidRequest.
func ParseHost(host, domain string) (t Target, ours bool, err error) {
	name, _ := splitAuthority(host)
	parent, _ := splitAuthority(strings.TrimPrefix(domain, "."))
	label, under := strings.CutSuffix(name, "."+parent)
	if !under || parent == "" || !strings.Contains(label, "-") {
		return Target{}, false, nil
	}
	if strings.Contains(label, ".") {
		return Target{}, true, errHost
	}
	// What follows a second dash is of no meaning, as with E2B.
	parts := strings.SplitN(label, "-", 3)
	t, err = Parse(parts[0], parts[1])
	return t, true, err
}

// splitAuthority splits what a Host header or a URL names into a name in lower case,
// without the dot at its end, and a port, empty when there is none. The brackets of an IPv6
// address stay.
func splitAuthority(authority string) (name, port string) {
	name = authority
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && i > strings.LastIndexByte(authority, ']') {
		name, port = authority[:i], authority[i+1:]
	}
	return strings.ToLower(strings.TrimSuffix(name, ".")), port
}

// IsProxied reports whether a path, as it was sent, is that of a sandbox's port.
func IsProxied(path string) bool { return strings.HasPrefix(path, root) }

// IsWhole reports whether a path, as it was sent, is one for SplitWhole.
func IsWhole(path string) bool { return strings.HasPrefix(path, wholeRoot) }

// Split takes a path as it was sent, still encoded, apart into the target that it is for and
// the path in the target's own space: empty, or all that follows, byte for byte. It errs
// with fault.NotFound when the path is not proxied and else with fault.InvalidRequest.
func Split(path string) (t Target, rest string, err error) { return split(path, root) }

// SplitWhole is Split for a path of an application that expects to get it whole. prefix is
// what Prefix is of other paths.
func SplitWhole(path string) (t Target, prefix string, err error) {
	t, rest, err := split(path, wholeRoot)
	return t, strings.TrimSuffix(path, rest), err
}

func split(path, root string) (t Target, rest string, err error) {
	named, ok := strings.CutPrefix(path, root)
	if !ok {
		return Target{}, "", fault.New(fault.NotFound, "there is nothing here but %s{sandbox}/{port}/", root)
	}
	id, named, _ := strings.Cut(named, "/")
	port := named
	if i := strings.IndexByte(named, '/'); i >= 0 {
		port, rest = named[:i], named[i:]
	}
	t, err = Parse(port, id)
	return t, rest, err
}

// MaskHost is the Host that an application gets to see whose sandbox has a mask, in which
// ${PORT} stands for the port.
func MaskHost(mask string, port uint16) string {
	return strings.ReplaceAll(mask, "${PORT}", strconv.Itoa(int(port)))
}

// MaskOrigin changes an Origin that is the one which the client asked for into that which
// the application takes for its own, and leaves every other one as it is.
func MaskOrigin(origin, host, masked string) string {
	scheme, authority, ok := strings.Cut(origin, "://")
	if !ok || !strings.EqualFold(authority, host) {
		return origin
	}
	return scheme + "://" + masked
}
