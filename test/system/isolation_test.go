package system_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

// refusalLimit is how long a guest may wait to hear that it may not: a probe that hangs
// is what makes tools inside seem broken.
const refusalLimit = 2 * time.Second

// probe tries to connect to each address given as "host port", and says how each try
// ended and after how many milliseconds.
const probe = `
import errno, json, socket, sys, time
results = {}
for target in sys.argv[1:]:
    host, port = target.rsplit(" ", 1)
    began = time.monotonic()
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
        how = "connected"
    except TimeoutError:
        how = "timed out"
    except OSError as e:
        how = errno.errorcode.get(e.errno, str(e))
    results[target] = [how, (time.monotonic() - began) * 1000]
print(json.dumps(results))
`

func (s *sandbox) probe(t *testing.T, targets ...string) map[string][2]any {
	t.Helper()
	r := s.exec(t, object{"cmd": "python3", "args": append([]string{"-c", probe}, targets...), "timeout_sec": 120})
	var results map[string][2]any
	if err := json.Unmarshal([]byte(r.stdout), &results); err != nil || r.code != 0 {
		t.Fatalf("the probe said %q %q: %v", r.stdout, r.stderr, err)
	}
	return results
}

// hostAddresses are the machine's own IPv4 addresses that are not those of sandboxes.
func hostAddresses(t *testing.T) []string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, a := range all {
		prefix, err := netip.ParsePrefix(a.String())
		if err == nil && prefix.Addr().Is4() && !prefix.Addr().IsLoopback() && prefix.Bits() < 30 {
			found = append(found, prefix.Addr().String())
		}
	}
	if len(found) == 0 {
		t.Fatal("the machine has no address to be reached at")
	}
	return found
}

func TestIsolation(t *testing.T) {
	p := theProgram(t)
	s, other := newSandbox(t, p, nil), newSandbox(t, p, nil)
	gateway, otherGateway := s.info["host_ip"].(string), other.info["host_ip"].(string)
	otherGuest := other.info["guest_ip"].(string)

	listener, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	a := p.call(t, http.MethodPost, other.path("/exec"), object{"cmd": "python3", "args": []string{"-m", "http.server", "8000"}, "background": true})
	if a.status != http.StatusAccepted {
		t.Fatalf("the other sandbox's server: %d %s", a.status, a.body)
	}

	var closed []string
	for _, host := range append(hostAddresses(t), gateway, otherGateway) {
		closed = append(closed, host+" "+port, host+" 22")
		requireListener(t, net.JoinHostPort(host, port))
	}
	requireListener(t, net.JoinHostPort(otherGuest, "8000"))
	closed = append(closed,
		otherGuest+" 8000", otherGuest+" 49983",
		otherGateway+" 53",
		"169.254.169.254 80",
		"10.0.0.1 80", "10.255.255.254 443", "172.16.0.1 80", "192.168.0.1 80", "192.168.255.254 22", "100.64.0.1 80",
	)
	for target, how := range s.probe(t, closed...) {
		if how[0] == "connected" || how[0] == "timed out" || how[1].(float64) > float64(refusalLimit.Milliseconds()) {
			t.Errorf("%s: %v after %.0f ms; want a refusal at once", target, how[0], how[1])
		}
	}
	// Without this, a guest with no network at all would pass.
	if how := s.probe(t, "127.0.0.1 49983", gateway+" 53"); how["127.0.0.1 49983"][0] != "connected" || how[gateway+" 53"][0] != "connected" {
		t.Errorf("the guest's own ways: %v", how)
	}
	for _, host := range hostAddresses(t) {
		if got := s.sh(t, fmt.Sprintf(`python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.connect(("%s", 53))
try: s.send(b"x" * 30); s.recv(10); print("answered")
except OSError as e: print("nothing")'`, host)); got != "nothing" {
			t.Errorf("UDP to the host: %s", got)
		}
	}
}

// requireListener shows that from the host there is somebody at an address, so that what
// refuses a guest is the isolation.
func requireListener(t *testing.T, address string) {
	t.Helper()
	eventually(t, settleLimit, func() error {
		conn, err := net.DialTimeout("tcp", address, refusalLimit)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func TestInternet(t *testing.T) {
	s := newSandbox(t, theProgram(t), object{"memory_mb": 1024})
	for name, script := range map[string]string{
		"apt":       "sudo apt-get update 2>&1 && apt-cache policy hello | grep -q Candidate",
		"pip":       "pip download --no-deps -q -d /tmp/pip six && ls /tmp/pip/six*",
		"pip venv":  "python3 -m venv /tmp/venv && /tmp/venv/bin/pip download --no-deps -q -d /tmp/venvpip six && ls /tmp/venvpip/six*",
		"pip -m":    "pip install -q --no-deps six && python3 -c 'import six'",
		"curl":      "curl -sSf -o /dev/null https://pypi.org/simple/six/",
		"wget":      "wget -q -O /dev/null https://pypi.org/simple/six/",
		"wrong DNS": "! getent hosts no-such-name.invalid",
	} {
		t.Run(name, func(t *testing.T) { s.sh(t, script) })
	}
}
