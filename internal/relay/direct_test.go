package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// script is a server that does, with its connections, what a test says.
func script(t *testing.T, serve func(n int, c net.Conn, r *bufio.Reader)) (address string, dialled *atomic.Int32) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dialled = new(atomic.Int32)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n := int(dialled.Add(1))
			go func() {
				defer c.Close()
				serve(n, c, bufio.NewReader(c))
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return l.Addr().String(), dialled
}

func directFor(t *testing.T) *Direct {
	t.Helper()
	d := &Direct{
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
		Rest: failing{}, MaxHeader: 4 << 10, AnswerTime: patience, IdleTime: patience, MaxIdle: 2,
	}
	t.Cleanup(d.CloseIdleConnections)
	return d
}

// failing is for what must not be asked.
type failing struct{}

var errRest = errors.New("the rest was asked")

func (failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, errRest }

func get(t *testing.T, d *Direct, address string) (string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/x", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := d.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// answers reads requests and answers each of them with the same.
func answers(c net.Conn, r *bufio.Reader, text string, times int) {
	for range times {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
	}
}

const hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

func TestDirectUsesConnectionsAgain(t *testing.T) {
	for name, one := range map[string]struct {
		answer string
		body   string
		conns  int32 // that three requests take
	}{
		"a length":         {hello, "hello", 1},
		"no body":          {"HTTP/1.1 204 No Content\r\n\r\n", "", 1},
		"chunks":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello", 1},
		"to be closed":     {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", "hello", 3},
		"the old protocol": {"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", 3},
		"too much":         {hello + "more", "hello", 3},
		"after early news": {"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + hello, "hello", 1},
	} {
		t.Run(name, func(t *testing.T) {
			address, dialled := script(t, func(_ int, c net.Conn, r *bufio.Reader) { answers(c, r, one.answer, 3) })
			d := directFor(t)
			for range 3 {
				if got, err := get(t, d, address); err != nil || got != one.body {
					t.Fatalf("%q, %v", got, err)
				}
			}
			if got := dialled.Load(); got != one.conns {
				t.Errorf("%d connections, want %d", got, one.conns)
			}
		})
	}
}

// An application hears a request twice at most, and once if it had its time for the answer.
func TestDirectAsksSparingly(t *testing.T) {
	for name, c := range map[string]struct {
		then func(c net.Conn, r *bufio.Reader) // after an answer
		want int32                             // how often it is asked then
	}{
		"closed": {func(net.Conn, *bufio.Reader) {}, 2},
		"silent": {func(_ net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			const warm = 5
			var asked atomic.Int32
			var together sync.WaitGroup // so that each of the first has a connection
			together.Add(warm)
			address, _ := script(t, func(_ int, conn net.Conn, r *bufio.Reader) {
				for n := 0; ; n++ {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					if n > 0 || asked.Load() > 0 {
						asked.Add(1)
						c.then(conn, r)
						return
					}
					together.Done()
					together.Wait()
					if _, err := io.WriteString(conn, hello); err != nil {
						return
					}
				}
			})
			d := directFor(t)
			d.MaxIdle = warm
			var first sync.WaitGroup
			for range warm {
				first.Go(func() {
					if _, err := get(t, d, address); err != nil {
						t.Error(err)
					}
				})
			}
			first.Wait()
			d.AnswerTime = 100 * time.Millisecond
			if _, err := get(t, d, address); err == nil {
				t.Error("it was answered")
			}
			if got := asked.Load(); got != c.want {
				t.Errorf("it was asked %d times, want %d", got, c.want)
			}
		})
	}
}

// A server may close a connection that is kept at any moment; nobody hears of it.
func TestDirectLeavesDeadConnections(t *testing.T) {
	for name, serve := range map[string]func(c net.Conn, r *bufio.Reader){
		"closed when it is idle":         func(c net.Conn, r *bufio.Reader) { answers(c, r, hello, 1) },
		"closed when it is asked":        func(c net.Conn, r *bufio.Reader) { answers(c, r, hello, 1); _, _ = http.ReadRequest(r) },
		"reset when it is asked":         func(c net.Conn, r *bufio.Reader) { answers(c, r, hello, 1); _, _ = r.Peek(1); Reset(c) },
		"closed with a word of farewell": func(c net.Conn, r *bufio.Reader) { answers(c, r, hello+"HTTP/1.1 408 Timeout\r\n\r\n", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			address, dialled := script(t, func(_ int, c net.Conn, r *bufio.Reader) { serve(c, r) })
			d := directFor(t)
			for range 5 {
				if got, err := get(t, d, address); err != nil || got != "hello" {
					t.Fatalf("%q, %v", got, err)
				}
			}
			if got := dialled.Load(); got != 5 {
				t.Errorf("%d connections", got)
			}
		})
	}
}

func TestDirectTellsWhatIsWrong(t *testing.T) {
	hold := func(r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) }
	for name, one := range map[string]struct {
		serve func(c net.Conn, r *bufio.Reader)
		check func(err error) bool
	}{
		"silence": {
			func(_ net.Conn, r *bufio.Reader) { hold(r) },
			func(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) },
		},
		"a long header": {
			func(c net.Conn, r *bufio.Reader) {
				answers(c, r, "HTTP/1.1 200 OK\r\nA: "+strings.Repeat("a", 8<<10), 1)
			},
			func(err error) bool { return errors.Is(err, errLongHeader) },
		},
		"news without end": {
			func(c net.Conn, r *bufio.Reader) {
				answers(c, r, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", maxInterim), 1)
				hold(r)
			},
			func(err error) bool { return errors.Is(err, errInterim) },
		},
		"nonsense": {
			func(c net.Conn, r *bufio.Reader) { answers(c, r, "nonsense\r\n\r\n", 1) },
			func(err error) bool { return err != nil },
		},
		"half a body": {
			func(c net.Conn, r *bufio.Reader) {
				answers(c, r, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", 1)
			},
			func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			address, dialled := script(t, func(_ int, c net.Conn, r *bufio.Reader) { one.serve(c, r) })
			d := directFor(t)
			d.AnswerTime = 100 * time.Millisecond
			if _, err := get(t, d, address); err == nil || !one.check(err) {
				t.Errorf("got %v", err)
			}
			if got := dialled.Load(); got != 1 {
				t.Errorf("it was tried %d times", got)
			}
			if len(d.idle) > 0 {
				t.Error("the connection was kept")
			}
		})
	}
}

func TestDirectEndsWithItsContext(t *testing.T) {
	address, _ := script(t, func(_ int, c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err == nil && req.URL.Path == "/body" {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")
		}
		_, _ = io.Copy(io.Discard, r)
	})
	why := errors.New("why")
	for _, path := range []string{"/header", "/body"} {
		d := directFor(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
		resp, err := d.RoundTrip(r)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if !errors.Is(err, why) {
			t.Errorf("%s: %v", path, err)
		}
		timer.Stop()
		cancel(nil)
		if len(d.idle) > 0 {
			t.Errorf("%s: the connection was kept", path)
		}
	}
}

// Whoever copies a body knows when its first piece will not have to be waited for.
func TestDirectKnowsWhatHasBegun(t *testing.T) {
	for answer, want := range map[string]bool{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh":                           true,
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n":                            false,
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n":                            true,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nh":             false,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n": true,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n":              false,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5":                  false,
		"HTTP/1.1 200 OK\r\n\r\nh":                                                true,
	} {
		address, _ := script(t, func(_ int, c net.Conn, r *bufio.Reader) {
			answers(c, r, answer, 1)
			_, _ = io.Copy(io.Discard, r)
		})
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := directFor(t).RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := bodyHasBegun(resp.Body); got != want {
			t.Errorf("%q: %v", answer, got)
		}
		resp.Body.Close()
	}
}

// What may not be sent twice, or has a body, is the rest's.
func TestDirectLeavesTheRest(t *testing.T) {
	for _, r := range []*http.Request{
		httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://h/", http.NoBody),
		httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://h/", strings.NewReader("body")),
		httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://h/", http.NoBody),
	} {
		if _, err := directFor(t).RoundTrip(r); !errors.Is(err, errRest) {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
	}
}

func TestDirectPassesEarlyNews(t *testing.T) {
	address, _ := script(t, func(_ int, c net.Conn, r *bufio.Reader) {
		answers(c, r, "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"+hello, 1)
	})
	var news string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error { news = fmt.Sprint(code, h.Get("Link")); return nil },
	})
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := directFor(t).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if news != "103a" {
		t.Errorf("%q", news)
	}
}

// Connections that nobody uses go after a while, and when there are enough.
func TestDirectKeepsFewAndNotLong(t *testing.T) {
	var open atomic.Int32
	address, _ := script(t, func(_ int, c net.Conn, r *bufio.Reader) {
		open.Add(1)
		defer open.Add(-1)
		answers(c, r, hello, 9)
	})
	d := directFor(t)
	d.IdleTime = 50 * time.Millisecond
	var held []*http.Response
	for range 4 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := d.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, resp)
	}
	for _, resp := range held {
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Error(err)
		}
		resp.Body.Close()
	}
	d.mu.Lock()
	kept := len(d.idle[address])
	d.mu.Unlock()
	if kept > d.MaxIdle {
		t.Errorf("%d are kept", kept)
	}
	for deadline := time.Now().Add(patience); open.Load() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d are open", open.Load())
		}
		<-time.After(time.Millisecond)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.idle) > 0 {
		t.Error("what is closed is kept")
	}
}
