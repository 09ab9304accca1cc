package webproxy

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// What could be read as two requests, or as one for somebody else, goes no further, and a
// length that is said twice goes on as one.
func TestSmuggling(t *testing.T) {
	var asked atomic.Int32
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		all, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %q %v", r.Host, r.URL.Path, all, r.ContentLength)
	}, nil)
	const post, get = "POST /a HTTP/1.1\r\nHost: " + boxHost + "\r\n", "GET /a HTTP/1.1\r\nHost: " + boxHost + "\r\n"
	const hidden = "GET /hidden HTTP/1.1\r\nHost: " + boxHost + "\r\n\r\n"
	for _, c := range []struct{ name, request, want string }{
		{"CL and TE", post + "Connection: close\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", boxHost + " /proxy/" + boxID + "/3000/a \"hello\" -1"},
		{"TE twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden, ""},
		{"TE disguised", post + "Transfer-Encoding: xchunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + hidden, ""},
		{"CL twice", post + "Content-Length: 3\r\nContent-Length: 5\r\n\r\nhello" + hidden, ""},
		{"CL signed", post + "Content-Length: +3\r\n\r\nabc" + hidden, ""},
		{"Host twice", get + "Host: 3000-sbother.localhost\r\n\r\n", ""},
		{"no Host", "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n", ""},
		{"a Host with a space", "GET /a HTTP/1.1\r\nHost: " + boxHost + " evil\r\n\r\n", ""},
		{"a space before the colon", get + "X-A : b\r\n\r\n", ""},
		{"a folded Host", "GET /a HTTP/1.1\r\nHost: 3000-\r\n " + boxID + ".localhost\r\n\r\n", ""},
		{"a null", get + "X-A: a\x00b\r\n\r\n", ""},
		{"a chunk too long", post + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nx\r\n", ""},
	} {
		asked.Store(0)
		conn := dial(t, b.front.Listener.Addr().String())
		if _, err := io.WriteString(conn, c.request); err != nil {
			t.Fatal(err)
		}
		if c.want == "" { // what makes no sense may be waited for
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		answer := bufio.NewReader(conn)
		resp, err := http.ReadResponse(answer, nil)
		if err != nil {
			if c.want != "" {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		got, _ := io.ReadAll(resp.Body) // what has broken off is no answer
		switch {
		case c.want == "" && resp.StatusCode < http.StatusBadRequest:
			t.Errorf("%s: %s %s", c.name, resp.Status, got)
		case c.want != "" && !strings.Contains(string(got), c.want):
			t.Errorf("%s: %s %q", c.name, resp.Status, got)
		case asked.Load() > 1:
			t.Errorf("%s: %d requests of it", c.name, asked.Load())
		}
		if more, _ := io.ReadAll(answer); strings.Contains(string(more), "hidden") {
			t.Errorf("%s: what was hidden is answered: %q", c.name, more)
		}
	}
}
