package main

import (
	"net"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// at is the address of a listener.
func at(port int) net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port} }

// fixedListener is a listener that merely has an address.
type fixedListener struct{ net.Listener }

func (fixedListener) Addr() net.Addr { return at(7701) }

// Links are for clients, who may reach the listeners by a proxy that ends TLS.
func TestAddressesAreThoseOfClients(t *testing.T) {
	for _, c := range []struct {
		o                    upOptions
		port                 int
		domain, scheme, says string
		paths                string
	}{
		{upOptions{domain: "localhost"}, 7700, "localhost", "http", "7700", "http://127.0.0.1:7701"},
		{upOptions{domain: "example.com"}, 80, "example.com", "http", "", "http://127.0.0.1:7701"},
		{upOptions{domain: "example.com", tls: tlsOptions{cert: "c", key: "k"}}, 443, "example.com", "https", "", "https://example.com:7701"},
		{upOptions{domain: "https://example.com"}, 7700, "example.com", "https", "", "http://127.0.0.1:7701"},
		{upOptions{domain: "HTTPS://example.com:8443/"}, 7700, "example.com:8443", "https", "", "http://127.0.0.1:7701"},
		{upOptions{domain: "http://example.com", proxyURL: "https://ports.example.com/"}, 7700, "example.com", "http", "", "https://ports.example.com"},
	} {
		if err := c.o.resolveOutside(); err != nil {
			t.Fatal(err)
		}
		scheme, port, paths, err := c.o.outside(at(c.port), pathListener{fixedListener{}})
		if err != nil || c.o.domain != c.domain || scheme != c.scheme || port != c.says || paths != c.paths {
			t.Errorf("%+v: %q %q %q %q, %v", c, c.o.domain, scheme, port, paths, err)
		}
		if _, _, paths, err := c.o.outside(at(c.port), pathListener{}); paths != "" || err != nil {
			t.Errorf("%+v: ports by path are at %q though nobody listens, %v", c, paths, err)
		}
	}
	for _, bad := range []upOptions{
		{domain: "ftp://example.com"}, {domain: "https://"}, {domain: "https://example.com/x"}, {domain: "https://me@example.com"},
		{proxyURL: "ports.example.com"}, {proxyURL: "https://ports.example.com/x"}, {proxyURL: "https://a:b@ports.example.com"},
		{proxyURL: "https://ports.example.com", proxyListen: noProxyListen},
	} {
		if err := bad.resolveOutside(); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
