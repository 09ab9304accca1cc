package freeze

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"testing"
)

func (l *load) upload(ctx context.Context, path string, content []byte) error {
	l.asking.RLock()
	defer l.asking.RUnlock()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url+"/files?path="+url.QueryEscape(path), bytes.NewReader(content))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	_, err = l.do(req)
	return err
}

func (l *load) download(ctx context.Context, path string) ([]byte, error) {
	l.asking.RLock()
	defer l.asking.RUnlock()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url+"/files?path="+url.QueryEscape(path), http.NoBody)
	if err != nil {
		return nil, err
	}
	return l.do(req)
}

func (l *load) do(req *http.Request) ([]byte, error) {
	resp, err := l.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return body, err
}

// echoServer is a server that gives back every line. Perl is part of every Debian.
const echoServer = `exec perl -MIO::Socket::INET -e '
	$SIG{CHLD} = "IGNORE";
	$s = IO::Socket::INET->new(LocalAddr => $ARGV[0], LocalPort => $ARGV[1], Listen => 16, ReuseAddr => 1, Proto => "tcp") or die "listen: $@";
	$| = 1; print "ready\n";
	while (1) { $c = $s->accept or next; if (!fork) { close $s; $c->autoflush(1); while (<$c>) { print $c $_ } exit 0 } close $c }' `

// serve starts the servers, which end with the daemon.
func (l *load) serve(t *testing.T) {
	t.Helper()
	for port, address := range map[int]string{loopbackPort: "127.0.0.1", openPort: "0.0.0.0"} {
		cmd, err := l.start(t.Context(), echoServer+address+" "+strconv.Itoa(port), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cmd.cancel)
		if got, err := cmd.line(); err != nil || got != "ready" {
			t.Fatalf("the server on port %d says %q: %v", port, got, err)
		}
	}
}

// connection keeps one connection to a server in the sandbox. A forwarded one is cut when
// the daemon is brought to rest, and only then; it can be made again soon after.
func (l *load) connection(port int, forwarded bool) func(context.Context, *client) error {
	return func(ctx context.Context, c *client) error {
		for !l.ending() {
			cuts := l.cuts.Load()
			err := l.talk(ctx, c, port)
			if err == nil {
				return nil
			}
			if cutting := cuts%2 == 1 || l.cuts.Load() != cuts; !forwarded || !cutting || ctx.Err() != nil {
				return err
			}
		}
		return nil
	}
}

// talk sends lines and reads them back, over one connection.
func (l *load) talk(ctx context.Context, c *client, port int) error {
	var conn net.Conn
	var err error
	if !eventually(ctx, func() bool {
		conn, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(l.address, strconv.Itoa(port)))
		return err == nil
	}) {
		return fmt.Errorf("cannot connect: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	lines := bufio.NewReader(conn)
	for n := 0; !l.ending(); n++ {
		text := fmt.Sprintf("line %d\n", n)
		if _, err := conn.Write([]byte(text)); err != nil {
			return err
		}
		got, err := lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("after %d lines: %w", n, err)
		}
		if got != text {
			return fmt.Errorf("%q comes back as %q", text, got)
		}
		c.progress()
	}
	return nil
}
