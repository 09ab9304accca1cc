package webproxy

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

const (
	// LinkTime is how long a one-time link is good for.
	LinkTime = 5 * time.Minute
	// passTime is how long the cookie is good for that a link becomes.
	passTime = 24 * time.Hour
	// linkParameter is the query parameter that makes an address a link.
	linkParameter = "wrenn_link"
	linkBytes     = 20
	// maxLinks bounds the links that nobody has used yet.
	maxLinks = 10_000
	// ownPrefix begins the names of all cookies of ours. Under TLS another prefix before it
	// makes browsers refuse one that another host of the domain has set.
	ownPrefix    = "wrenn_"
	securePrefix = "__Host-"
	// passCookie is the name of the cookie that a link becomes.
	passCookie       = ownPrefix + "pass"
	passCookieSecure = securePrefix + passCookie
)

// admit lets a request to a private sandbox pass, or answers it.
func (e *Edge) admit(w http.ResponseWriter, r *http.Request, to target, sb sandbox.Sandbox) bool {
	if secret, rest, ok := cutLink(to.rest); ok && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		// A link that was used once still leads those to the page who came by it before.
		if !hasPass(r, to, sb) {
			// Asking for the header alone, as previews of links do, leaves the link good.
			if r.Method == http.MethodHead || !e.links.use(secret, to.Target) {
				refuse(w, r, badLink(to.Target))
				return false
			}
			http.SetCookie(w, newPass(to, sb, e.proxies.scheme(r) == schemeSecure))
		}
		w.Header().Set("Referrer-Policy", "no-referrer")
		redirect(w, to.seen(rest))
		return false
	}
	if hasToken(r, sb) {
		return true
	}
	if hasPass(r, to, sb) {
		if e.isForeign(r, to) {
			refuse(w, r, foreign(to.Target))
			return false
		}
		return true
	}
	refuse(w, r, forbidden(to.Target, r.Header.Get(tokenHeader) != ""))
	return false
}

// hasToken reports whether a request has the traffic token of a sandbox.
func hasToken(r *http.Request, sb sandbox.Sandbox) bool {
	return subtle.ConstantTimeCompare([]byte(r.Header.Get(tokenHeader)), []byte(sb.Web.TrafficToken)) == 1
}

// isForeign reports whether a page that is not the sandbox's own makes a browser send a
// request that can do something. Pages of other sandboxes are of the same site, so that
// browsers add the cookie; WebSockets know no other border than this.
func (e *Edge) isForeign(r *http.Request, to target) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		if _, upgrades := r.Header["Upgrade"]; !upgrades {
			return false
		}
	}
	origins, named := r.Header["Origin"]
	if !named {
		return false // it is no browser: those name it in all such requests
	}
	if len(origins) != 1 {
		return true
	}
	from, err := url.Parse(origins[0])
	if err != nil || from.Host == "" {
		return true // such as null
	}
	// Whoever serves one port of a sandbox may as well ask another.
	if page, ours, err := webroute.ParseHost(from.Host, e.domain); err == nil && ours && page.Sandbox == to.Sandbox {
		return false
	}
	plain := func(host string) string {
		host = strings.ToLower(host)
		return strings.TrimSuffix(strings.TrimSuffix(host, ":80"), ":443")
	}
	return plain(from.Host) != plain(r.Host) && plain(from.Host) != plain(e.proxies.host(r))
}

// Link is a link to a port that works once, and then keeps the browser that used it going
// for a day. A sandbox that is not private has no need of one: the link is its address.
func (e *Edge) Link(sb sandbox.Sandbox, port int) (link string, expires time.Time, err error) {
	address := e.URL(sb.ID, port)
	if address == "" {
		return "", time.Time{}, fault.New(fault.InvalidState, "this server shows no ports: it has neither --domain nor --proxy-listen")
	}
	expires = now().Add(LinkTime)
	if !sb.Web.Private() {
		return address, expires, nil
	}
	secret := e.links.add(webroute.Target{Sandbox: sb.ID, Port: uint16(port)}, expires)
	return address + "?" + linkParameter + "=" + secret, expires, nil
}

// cutLink finds the secret of a link in what is asked, and what is asked without it.
func cutLink(rest string) (secret, without string, ok bool) {
	path, query, _ := strings.Cut(rest, "?")
	var kept []string
	for part := range strings.SplitSeq(query, "&") {
		if value, found := strings.CutPrefix(part, linkParameter+"="); found {
			secret, ok = value, true
		} else if part != "" {
			kept = append(kept, part)
		}
	}
	if len(kept) > 0 {
		path += "?" + strings.Join(kept, "&")
	}
	return secret, path, ok
}

// links are those that nobody has used yet. They are in memory alone, by their hash: after a
// restart people ask for another. It is safe for concurrent use.
type links struct {
	mu   sync.Mutex
	open map[[sha256.Size]byte]link
}

type link struct {
	to      webroute.Target
	expires time.Time
}

func newLinks() *links { return &links{open: make(map[[sha256.Size]byte]link)} }

// add makes a link and returns its secret.
func (l *links) add(to webroute.Target, expires time.Time) string {
	var raw [linkBytes]byte
	_, _ = rand.Read(raw[:]) // never fails: it ends the program instead
	secret := hex.EncodeToString(raw[:])
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= maxLinks {
		l.trim()
	}
	l.open[sha256.Sum256([]byte(secret))] = link{to, expires}
	return secret
}

// trim removes what is too old, or anything when all are good. The caller holds l.mu.
func (l *links) trim() {
	at := now()
	for hash, li := range l.open {
		if at.After(li.expires) || len(l.open) >= maxLinks {
			delete(l.open, hash)
		}
	}
}

// use reports whether a secret is that of a link to a port, which it is no more then.
func (l *links) use(secret string, to webroute.Target) bool {
	hash := sha256.Sum256([]byte(secret))
	l.mu.Lock()
	defer l.mu.Unlock()
	li, ok := l.open[hash]
	if !ok || li.to != to {
		return false
	}
	delete(l.open, hash)
	return now().Before(li.expires)
}

// newPass is the cookie that keeps a browser going: for one port of one sandbox, and no
// other host or path. secure is whether the browser came by TLS.
func newPass(to target, sb sandbox.Sandbox, secure bool) *http.Cookie {
	until := now().Add(passTime)
	c := &http.Cookie{
		Name: passCookie, Value: signPass(to.Target, sb, until.Unix()), Path: "/",
		Expires: until, HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: secure,
	}
	if to.prefix != "" {
		c.Path = to.prefix + "/"
	} else if c.Secure {
		c.Name = passCookieSecure
	}
	return c
}

// signPass is a time and what proves that we said it: the sandbox's token, which the cookie
// does not tell.
func signPass(to webroute.Target, sb sandbox.Sandbox, until int64) string {
	mac := hmac.New(sha256.New, []byte(sb.Web.TrafficToken))
	fmt.Fprintf(mac, "pass %s %d %d", to.Sandbox, to.Port, until)
	return strconv.FormatInt(until, 10) + "." + hex.EncodeToString(mac.Sum(nil))
}

// hasPass reports whether a request has a cookie that is good for its target. A page of
// another sandbox may have set one of the same name beside it.
func hasPass(r *http.Request, to target, sb sandbox.Sandbox) bool {
	for _, c := range r.Cookies() {
		if c.Name != passCookie && c.Name != passCookieSecure {
			continue
		}
		text, _, _ := strings.Cut(c.Value, ".")
		until, err := strconv.ParseInt(text, 10, 64)
		if err == nil && now().Unix() < until && hmac.Equal([]byte(c.Value), []byte(signPass(to.Target, sb, until))) {
			return true
		}
	}
	return false
}

// isOwn reports whether a cookie of this name is Wrenn's. Cookies do not know ports: what
// one listener of ours sets comes to the others, too, and must not reach a sandbox.
func isOwn(name string) bool {
	return strings.HasPrefix(name, ownPrefix) || strings.HasPrefix(name, securePrefix+ownPrefix)
}

// withoutOwn takes our cookies off the lines of a request's Cookie header, and leaves the
// others byte for byte.
func withoutOwn(lines []string) []string {
	var out []string
	for _, line := range lines {
		if !strings.Contains(line, ownPrefix) {
			out = append(out, line)
			continue
		}
		var kept []string
		for part := range strings.SplitSeq(line, ";") {
			if name, _, _ := strings.Cut(strings.TrimSpace(part), "="); !isOwn(name) {
				kept = append(kept, strings.TrimSpace(part))
			}
		}
		if len(kept) > 0 {
			out = append(out, strings.Join(kept, "; "))
		}
	}
	return out
}

// dropOwn takes cookies with our names off an answer: an application must not sign anybody
// in or out.
func dropOwn(header http.Header) {
	set := slices.DeleteFunc(header["Set-Cookie"], func(line string) bool {
		name, _, _ := strings.Cut(line, "=")
		return isOwn(strings.TrimSpace(name))
	})
	if len(set) == 0 {
		header.Del("Set-Cookie")
		return
	}
	header["Set-Cookie"] = set
}

// redirect sends a client to another path of the same origin.
func redirect(w http.ResponseWriter, to string) {
	// Two slashes would name another host.
	if strings.HasPrefix(to, "//") || strings.HasPrefix(to, "/\\") {
		to = "/." + to
	}
	w.Header().Set("Location", to)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusTemporaryRedirect)
}
