package webroute

import (
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// App is the space of one application: its addresses as it knows them itself.
type App struct {
	Target
	// Host is the Host that the application was sent, and Original the one that the client
	// asked for; empty when that is the same.
	Host, Original string
	// Address is the guest's own address.
	Address netip.Addr
	// Path is that of the request in the application's space, still encoded. What it
	// answers with relative to that is left alone, unless it would climb out of the prefix.
	Path string
}

// locations are the headers that hold one address.
var locations = []string{"Location", "Content-Location", "Service-Worker-Allowed"}

// Rewrite puts the addresses in an application's answer that lie in its own space under the
// target's prefix. What lies elsewhere, and what has the prefix already since the
// application knows of it, stays as it is.
func Rewrite(h http.Header, a App) {
	edit(h, a.rewriteRef, a.rewriteCookiePath)
	// It would lead clients past the proxy.
	h.Del("Alt-Svc")
}

// Strip takes the prefix off again that Rewrite has put before addresses, for a client that
// sees the application at the root of an origin of its own.
func Strip(h http.Header, prefix string) {
	edit(h,
		func(ref string) string { return stripRef(ref, prefix) },
		func(p string) string {
			if rest, ok := cutPath(p, prefix); ok {
				return rest
			}
			return p
		})
}

// Confine puts the addresses of this origin in an answer under a prefix that the application
// knows itself, as far as they are not there: it shares the origin with others.
func Confine(h http.Header, prefix string) {
	confined := func(p string) string {
		if _, inside := cutPath(p, prefix); inside {
			return p
		}
		return prefix + p
	}
	edit(h, func(ref string) string {
		if trimmed := strings.Trim(ref, " \t"); strings.HasPrefix(trimmed, "/") && !strings.HasPrefix(trimmed, "//") {
			return confined(trimmed)
		}
		return ref
	}, confined)
}

// edit changes every address and every cookie's path in the headers of an answer.
func edit(h http.Header, ref, cookiePath func(string) string) {
	for _, name := range locations {
		for i, v := range h[name] {
			h[name][i] = ref(v)
		}
	}
	for i, v := range h["Refresh"] {
		h["Refresh"][i] = editRefresh(v, ref)
	}
	for i, v := range h["Set-Cookie"] {
		h["Set-Cookie"][i] = editCookie(v, cookiePath)
	}
}

// rewriteRef is Rewrite for one address.
func (a App) rewriteRef(ref string) string {
	trimmed := plainStart(ref)
	switch {
	case trimmed == "":
		return ref
	case strings.HasPrefix(trimmed, "//"):
		return a.rewriteAbsolute(ref, "", strings.TrimLeft(trimmed, slashes))
	case trimmed[0] == '/':
		return a.prefixed(trimmed)
	}
	// A scheme ends before whatever else could follow it.
	if i := strings.IndexAny(trimmed, ":/?#\\"); i > 0 && trimmed[i] == ':' {
		scheme := strings.ToLower(trimmed[:i])
		if scheme != "http" && scheme != "https" {
			return ref
		}
		rest := strings.TrimLeft(trimmed[i+1:], slashes)
		// Without its two slashes an address is one of the same host, where the scheme is.
		switch len(trimmed) - len(rest) - (i + 1) {
		case 0:
			return a.rewriteRef(rest)
		case 1:
			return a.prefixed("/" + rest)
		}
		return a.rewriteAbsolute(ref, scheme, rest)
	}
	return a.rewriteRelative(ref, trimmed)
}

// slashes are what browsers take for slashes in an address.
const slashes = "/\\"

// plainStart is an address as browsers read it, as far as what kind it is depends on that.
func plainStart(ref string) string {
	ref = strings.TrimFunc(ref, func(c rune) bool { return c <= ' ' })
	if ref == "" || ref[0] == '/' {
		return ref
	}
	ref = strings.ReplaceAll(ref, "\t", "")
	switch rest := strings.TrimLeft(ref, slashes); len(ref) - len(rest) {
	case 0:
		return ref
	case 1:
		return "/" + rest
	default:
		return "//" + rest
	}
}

// rewriteAbsolute is rewriteRef for an address with an authority; rest is what follows its
// slashes. A name and a password before the host are lost, as no path can hold them: who is
// asked for them types them, while an address that stays as it is leads nowhere.
func (a App) rewriteAbsolute(ref, scheme, rest string) string {
	authority, inside := rest, ""
	if i := strings.IndexAny(rest, "/?#\\"); i >= 0 {
		authority, inside = rest[:i], rest[i:]
	}
	if !a.owns(scheme, authority[strings.LastIndexByte(authority, '@')+1:]) {
		return ref
	}
	if inside = strings.TrimPrefix(inside, "\\"); inside == "" || inside[0] != '/' {
		inside = "/" + inside
	}
	return a.prefixed(inside)
}

// prefixed puts a path, and what follows it, under the prefix. At the root of an origin one
// cannot climb above it; under a prefix one could.
func (a App) prefixed(inside string) string {
	end := pathEnd(inside)
	if isClimbing(inside[:end]) {
		inside = resolve(inside[:end]) + inside[end:]
	}
	prefix := a.Prefix()
	if _, already := cutPath(inside, prefix); already {
		return inside
	}
	return prefix + inside
}

// rewriteRelative is rewriteRef for an address that is relative to the request's.
func (a App) rewriteRelative(ref, trimmed string) string {
	end := pathEnd(trimmed)
	if !isClimbing(trimmed[:end]) {
		return ref
	}
	dir := a.Path[:strings.LastIndexByte(a.Path, '/')+1]
	if !strings.HasPrefix(dir, "/") {
		dir = "/" + dir
	}
	return a.prefixed(resolve(dir+trimmed[:end]) + trimmed[end:])
}

// pathEnd is where the path of an address ends that has neither scheme nor host.
func pathEnd(ref string) int {
	if end := strings.IndexAny(ref, "?#"); end >= 0 {
		return end
	}
	return len(ref)
}

// segments are the parts of a path.
func segments(path string) []string {
	return strings.Split(strings.ReplaceAll(path, "\\", "/"), "/")
}

// isClimbing reports whether a path has a part that leads to the one above.
func isClimbing(path string) bool {
	return slices.ContainsFunc(segments(path), func(s string) bool { return dots(s) == parentDots })
}

// parentDots is how many dots are the name of the part above.
const parentDots = 2

// dots is how many dots a part of a path is to browsers, 0 when it is anything else.
func dots(segment string) int {
	segment = strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(segment), "\t", ""), "%2e", ".")
	if segment == "." || segment == ".." {
		return len(segment)
	}
	return 0
}

// resolve is a path, from the root on, without the parts that are dots, as browsers make it.
func resolve(path string) string {
	all := segments(path)[1:]
	var kept []string
	for i, s := range all {
		n := dots(s)
		if n == parentDots && len(kept) > 0 {
			kept = kept[:len(kept)-1]
		}
		if n == 0 {
			kept = append(kept, s)
		} else if i == len(all)-1 {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/")
}

// owns reports whether an authority is one that the application takes for itself: that
// which it was asked under, or the guest's own addresses with its port.
func (a App) owns(scheme, authority string) bool {
	name, port := splitAuthority(authority)
	for _, host := range []string{a.Host, a.Original} {
		if host == "" {
			continue
		}
		hostName, hostPort := splitAuthority(host)
		if name == hostName && (port == hostPort || isDefault(scheme, port) && isDefault(scheme, hostPort)) {
			return true
		}
	}
	if port != strconv.Itoa(int(a.Port)) && (!isDefault(scheme, port) || !isDefault(scheme, strconv.Itoa(int(a.Port)))) {
		return false
	}
	if name == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil && (ip.IsLoopback() || ip.IsUnspecified() || ip.Unmap() == a.Address)
}

// isDefault reports whether a port is the one that a scheme has when none is named. An
// address without a scheme may be of either.
func isDefault(scheme, port string) bool {
	switch port {
	case "":
		return true
	case "80":
		return scheme != "https"
	case "443":
		return scheme != "http"
	}
	return false
}

// cutPath takes a prefix off an address that begins with it, as a path does: what follows
// is nothing, or something that ends a segment. What is left begins with a slash.
func cutPath(ref, prefix string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(ref, prefix)
	switch {
	case !ok:
		return ref, false
	case rest == "" || rest[0] == '?' || rest[0] == '#':
		return "/" + rest, true
	case rest[0] == '/':
		return rest, true
	}
	return ref, false
}

// stripRef is Strip for one address.
func stripRef(ref, prefix string) string {
	rest, ok := cutPath(strings.Trim(ref, " \t"), prefix)
	if !ok {
		return ref
	}
	// Two slashes, which is what browsers make of all of these, would lead to another host.
	if next := strings.TrimLeft(rest[1:], "\t"); next != "" && (next[0] == '/' || next[0] == '\\') {
		return "/." + rest
	}
	return rest
}

// editRefresh changes the address in a Refresh header: "5; url=/x", "0,URL='/x'".
func editRefresh(v string, ref func(string) string) string {
	i := strings.IndexAny(v, ";,")
	if i < 0 {
		return v
	}
	address := strings.TrimLeft(v[i+1:], " \t")
	if len(address) >= len("url") && strings.EqualFold(address[:len("url")], "url") {
		if named, ok := strings.CutPrefix(strings.TrimLeft(address[len("url"):], " \t"), "="); ok {
			address = strings.TrimLeft(named, " \t")
		}
	}
	before, after := v[:len(v)-len(address)], ""
	if address != "" && (address[0] == '\'' || address[0] == '"') {
		quote := address[:1]
		before, address = before+quote, address[1:]
		if end := strings.Index(address, quote); end >= 0 {
			address, after = address[:end], address[end:]
		}
	}
	return before + ref(address) + after
}

// rewriteCookiePath is Rewrite for the path of a cookie.
func (a App) rewriteCookiePath(p string) string { return a.prefixed(p) }

// editCookie changes the path in a Set-Cookie header. A cookie's domain is taken off: what
// the application takes for its host need not be the one that the client asked, and a
// sandbox must not set cookies for its neighbours.
func editCookie(v string, cookiePath func(string) string) string {
	parts := strings.Split(v, ";")
	kept := parts[:1]
	for _, part := range parts[1:] {
		name, value, _ := strings.Cut(part, "=")
		name, value = strings.Trim(name, " \t"), strings.Trim(value, " \t")
		switch {
		case strings.EqualFold(name, "domain"):
			continue
		case strings.EqualFold(name, "path") && strings.HasPrefix(value, "/"):
			part = " Path=" + cookiePath(value)
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, ";")
}
