package freeze

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/proto/guest/filesystem/filesystemconnect"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

const (
	token = "of the freeze test"
	// patience bounds how long a test waits for something to come true. After a restore the
	// daemon's connections are set going by /init; what the host has to send again waits for
	// its own, backed-off timer.
	patience = 10 * time.Second
	// Where the servers in the sandbox listen.
	loopbackPort = 7001
	openPort     = 7002
)

// load is a daemon that is kept busy by clients of every kind, each of which notices when
// anything is lost, doubled or out of order.
type load struct {
	url     string // of the daemon
	address string // of the sandbox
	http    *http.Client
	process processconnect.ProcessClient
	files   filesystemconnect.FilesystemClient
	dir     string // in the sandbox, for the clients' files

	// asking is held shared over every single request, and alone from the moment that the
	// daemon is to rest until it is woken: its host asks nothing meanwhile. Streams go on.
	asking sync.RWMutex
	// cuts counts the begins and the ends of times in which forwarded connections are cut
	// on purpose.
	cuts atomic.Int64

	clients []*client
	group   *errgroup.Group
	ctx     context.Context // ends when a client fails
	end     chan struct{}   // closed when clients are to finish
}

// client is one of them.
type client struct {
	name string
	run  func(context.Context, *client) error
	// done counts what it has got back, so that a test can see that it goes on.
	done atomic.Int64
}

func (c *client) progress() { c.done.Add(1) }

// tokenAdder gives the token with every request.
type tokenAdder struct{ http.RoundTripper }

func (a tokenAdder) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("X-Access-Token", token)
	return a.RoundTripper.RoundTrip(req)
}

// dialer makes connections as the host does, which see in seconds that a sandbox has gone.
var dialer = &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 30}}

func newLoad(t *testing.T, address, dir string) *load {
	t.Helper()
	transport := &http.Transport{DialContext: dialer.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	l := &load{
		url: "http://" + net.JoinHostPort(address, "49983"), address: address, dir: dir,
		http: &http.Client{Transport: tokenAdder{transport}}, end: make(chan struct{}),
	}
	l.process = processconnect.NewProcessClient(l.http, l.url)
	l.files = filesystemconnect.NewFilesystemClient(l.http, l.url, connect.WithProtoJSON())
	l.clients = []*client{
		{name: "numbered lines", run: l.numberedLines},
		{name: "flood", run: l.flood},
		{name: "stdin", run: l.stdin},
		{name: "terminal", run: l.terminal},
		{name: "short commands", run: l.shortCommands},
		{name: "watch", run: l.watch},
		{name: "files", run: l.transfers},
		{name: "forwarded port", run: l.connection(loopbackPort, true)},
		{name: "open port", run: l.connection(openPort, false)},
	}
	return l
}

// begin starts the clients and returns when all are at work.
func (l *load) begin(t *testing.T) {
	t.Helper()
	l.group, l.ctx = errgroup.WithContext(t.Context())
	for _, c := range l.clients {
		l.group.Go(func() error {
			if err := c.run(l.ctx, c); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			return nil
		})
	}
	l.goesOn(t)
}

// goesOn returns when every client has got something that was asked after the call. One
// answer may have been on its way, two cannot.
func (l *load) goesOn(t *testing.T) {
	t.Helper()
	const quick = 2 * time.Second
	began, slow, told := time.Now(), []string(nil), false
	before := make([]int64, len(l.clients))
	for i, c := range l.clients {
		before[i] = c.done.Load()
	}
	if !eventually(l.ctx, func() bool {
		slow = nil
		for i, c := range l.clients {
			if c.done.Load() < before[i]+2 {
				slow = append(slow, c.name)
			}
		}
		if !told && len(slow) > 0 && time.Since(began) > quick {
			t.Logf("these take more than %v to go on: %s", quick, strings.Join(slow, ", "))
			told = true
		}
		return len(slow) == 0
	}) {
		if l.ctx.Err() != nil {
			t.Fatalf("a client failed: %v", l.group.Wait())
		}
		t.Fatalf("these do not go on: %s", strings.Join(slow, ", "))
	}
}

// finish lets the clients come to their ends and check them.
func (l *load) finish(t *testing.T) {
	t.Helper()
	close(l.end)
	ended := make(chan error, 1)
	go func() { ended <- l.group.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("some clients do not end")
	}
	var counts []string
	for _, c := range l.clients {
		counts = append(counts, fmt.Sprintf("%s %d", c.name, c.done.Load()))
	}
	t.Log("answers: " + strings.Join(counts, ", "))
}

func (l *load) ending() bool {
	select {
	case <-l.end:
		return true
	default:
		return false
	}
}

// post asks the daemon for something that has no answer but its status.
func (l *load) post(t *testing.T, path, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	// What is asked here may be asked twice, so net/http may try again when a connection
	// turns out to be closed. The header itself is not sent.
	req.Header["Idempotency-Key"] = nil
	resp, err := l.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("%s: %s", path, resp.Status)
	}
}

func (l *load) init(t *testing.T) {
	t.Helper()
	l.post(t, "/init", fmt.Sprintf(`{"accessToken":%q,"defaultUser":"root","timestamp":%q}`, token, time.Now().Format(time.RFC3339Nano)))
}

// resting runs f while the daemon is at rest, as its host does.
func (l *load) resting(t *testing.T, f func()) {
	t.Helper()
	l.asking.Lock()
	defer l.asking.Unlock()
	l.cuts.Add(1)
	defer l.cuts.Add(1)
	l.post(t, "/snapshot/prepare", "")
	// The daemon has closed them, and a client that has not noticed would ask in vain.
	l.http.CloseIdleConnections()
	f()
	l.init(t)
}

// settled returns what look says of a daemon that nobody asks anything, once it says the
// same for a while. Rest makes the daemon close what is idle and collect what is unused,
// and then it forwards its port again.
func (l *load) settled(t *testing.T, look func() string) string {
	t.Helper()
	l.settle(t)
	const enough = 40
	last, same := "", 0
	if !eventually(t.Context(), func() bool {
		now := look()
		if now != last {
			last, same = now, 0
		}
		same++
		return same == enough
	}) {
		t.Fatalf("what the daemon has keeps changing; now it is %s", last)
	}
	return last
}

// settlesAt checks that look comes to say the same as before. A connection whose end the
// daemon did not hear of may take it some seconds.
func (l *load) settlesAt(t *testing.T, before string, look func() string) {
	t.Helper()
	l.settle(t)
	var now string
	if !eventually(t.Context(), func() bool {
		now = look()
		return now == before
	}) {
		t.Errorf("the daemon has %s, before it had %s", now, before)
	}
}

func (l *load) settle(t *testing.T) {
	t.Helper()
	l.resting(t, func() {})
	if !eventually(t.Context(), func() bool {
		conn, err := dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(l.address, strconv.Itoa(loopbackPort)))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}) {
		t.Fatal("the port is not forwarded")
	}
}

// attemptTimeout bounds one question whether the daemon is there. A connection that was
// begun before its network was may wait for long.
const attemptTimeout = 250 * time.Millisecond

// awaitDaemon returns when the daemon answers, as its host does before it says more.
func (l *load) awaitDaemon(t *testing.T) {
	t.Helper()
	var last error
	if !eventually(t.Context(), func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), attemptTimeout)
		defer cancel()
		var req *http.Request
		if req, last = http.NewRequestWithContext(ctx, http.MethodGet, l.url+"/health", http.NoBody); last != nil {
			t.Fatal(last)
		}
		var resp *http.Response
		if resp, last = l.http.Do(req); last == nil {
			resp.Body.Close()
		}
		return last == nil
	}) {
		t.Fatalf("the daemon does not answer: %v", last)
	}
}

// eventually says whether ok becomes true in time.
func eventually(ctx context.Context, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// pause waits for d, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

var errEarly = errors.New("the stream ended by itself")
