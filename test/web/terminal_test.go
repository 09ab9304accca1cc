package web_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
)

const (
	// manyKeys and someKeys are how many are typed to see how quickly they come back, one
	// each betweenKeys.
	manyKeys    = 300
	someKeys    = 100
	betweenKeys = 10 * time.Millisecond
	// echoLimit is what 99 of 100 echoes may take: 25 ms on two cores that do nothing else,
	// and here there is Chromium, too. `make bench-proxy` measures it.
	echoLimit = 4 * 25 * time.Millisecond
	// heldUpLimit is that on a machine which runs other tests at the same time; who waits for
	// a stalled download waits without end.
	heldUpLimit = time.Second
)

// terminal is one in a sandbox whose program echoes.
type terminal struct{ conn *websocket.Conn }

// message is one of its WebSocket.
type message struct {
	Type string   `json:"type"`
	Cmd  string   `json:"cmd,omitempty"`
	Args []string `json:"args,omitempty"`
	Data []byte   `json:"data,omitempty"`
}

// openTerminal opens one that is closed when the test ends.
func (w *world) openTerminal(t *testing.T, id string) *terminal {
	t.Helper()
	address := w.server.URL() + "/v1/sandboxes/" + id + "/pty"
	options := &websocket.DialOptions{HTTPHeader: http.Header{"X-Api-Key": {w.server.Key()}}}
	conn, _, err := websocket.Dial(t.Context(), address, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseNow() })
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	o := &terminal{conn}
	err = wsjson.Write(ctx, conn, message{Type: "start", Cmd: "sh", Args: []string{"-c", "stty raw -echo; printf ready; exec cat"}})
	if err == nil {
		err = o.await(ctx, "ready")
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// await reads output until all of text has come.
func (o *terminal) await(ctx context.Context, text string) error {
	for text != "" {
		var m message
		if err := wsjson.Read(ctx, o.conn, &m); err != nil {
			return err
		}
		switch m.Type {
		case "started", "ping":
			continue
		case "output":
		default:
			return fmt.Errorf("the terminal said %s", m.Type)
		}
		rest, ok := strings.CutPrefix(text, string(m.Data))
		if !ok {
			return fmt.Errorf("the terminal printed %q, not %q", m.Data, text)
		}
		text = rest
	}
	return nil
}

// isQuick types and fails the test when the echoes take too long.
func (o *terminal) isQuick(t *testing.T, keystrokes int, limit time.Duration, when string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	took := make([]time.Duration, 0, keystrokes)
	tick := time.NewTicker(betweenKeys)
	defer tick.Stop()
	for range keystrokes {
		<-tick.C
		began := time.Now()
		err := wsjson.Write(ctx, o.conn, message{Type: "input", Data: []byte("k")})
		if err == nil {
			err = o.await(ctx, "k")
		}
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	const hundred, ninetyNine = 100, 99
	median, p99 := took[keystrokes/2], took[(keystrokes-1)*ninetyNine/hundred]
	t.Logf("a terminal %s: echoes take %v at the median, %v at p99", when, median, p99)
	if p99 > limit {
		t.Errorf("a terminal %s: 99 of 100 echoes take up to %v", when, p99)
	}
}

// Downloads that nobody reads fill every buffer on their way, up to the application. On a
// connection that they shared with terminals nothing else would come through any more.
func TestTerminalBesideStalledDownloads(t *testing.T) {
	const (
		stalled = 20
		size    = 64 << 20
	)
	eachWay(t, func(t *testing.T, w *world, address func(int) string) {
		client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, to string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(to)
			if err != nil {
				return nil, err
			}
			return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port)) // whatever the resolver makes of *.localhost
		}}}
		for range stalled {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("%sbytes?n=%d", address(appPort), size), http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = answer.Body.Close() }) // it is not read
			if answer.StatusCode != http.StatusOK || answer.ContentLength != size {
				t.Fatalf("a download: %s", answer.Status)
			}
		}
		w.openTerminal(t, w.sandbox).isQuick(t, someKeys, heldUpLimit, fmt.Sprintf("beside %d downloads that nobody reads", stalled))
	})
}
