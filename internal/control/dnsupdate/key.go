package dnsupdate

import (
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/miekg/dns"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Key is a key of TSIG. Printing one does not show its secret.
type Key struct {
	// Name and Algorithm are full names of the DNS, in lower case.
	Name, Algorithm string
	secret          string // in base64
}

// String implements fmt.Stringer.
func (k Key) String() string { return k.Algorithm + " key " + k.Name }

// GoString implements fmt.GoStringer.
func (k Key) GoString() string { return k.String() }

// algorithms are those that servers know and that are not broken.
var algorithms = map[string]string{
	"hmac-sha1": dns.HmacSHA1, "hmac-sha224": dns.HmacSHA224, "hmac-sha256": dns.HmacSHA256,
	"hmac-sha384": dns.HmacSHA384, "hmac-sha512": dns.HmacSHA512,
}

// ReadKey reads a key from a file: as tsig-keygen and BIND write it, or in one line,
// algorithm:name:secret, as nsupdate and knsupdate take it.
func ReadKey(path string) (Key, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Key{}, fault.Wrap(err, fault.InvalidRequest, "cannot read the key of the DNS server: %v", err)
	}
	key, err := parseKey(string(text))
	if err != nil {
		return Key{}, fault.New(fault.InvalidRequest,
			"%s holds no key of a DNS server (%v); want what tsig-keygen prints, or a line algorithm:name:secret", path, err)
	}
	return key, nil
}

// The parts of a key as BIND writes it; anything else in the file is left alone.
var (
	comments   = regexp.MustCompile(`(?s)"[^"]*"|/\*.*?\*/|(?://|#)[^\n]*`)
	clause     = regexp.MustCompile(`(?s)\bkey\s+"?([^\s"{;]+)"?\s*\{(.*?)\}`)
	statements = regexp.MustCompile(`\b(algorithm|secret)\s+"?([^\s";]+)"?\s*;`)
)

// parseKey is ReadKey for the text. Its errors do not quote the text.
func parseKey(text string) (Key, error) {
	if line := strings.TrimSpace(text); !strings.ContainsAny(line, " \t\r\n{") {
		if parts := strings.Split(line, ":"); len(parts) == 3 {
			return newKey(parts[1], parts[0], parts[2])
		}
		return Key{}, fmt.Errorf("it is no line algorithm:name:secret")
	}
	found := clause.FindStringSubmatch(withoutComments(text))
	if found == nil {
		return Key{}, fmt.Errorf("there is no key in it")
	}
	said := map[string]string{}
	for _, s := range statements.FindAllStringSubmatch(found[2], -1) {
		said[s[1]] = s[2]
	}
	return newKey(found[1], said["algorithm"], said["secret"])
}

// withoutComments takes the comments out of BIND's configuration. What stands in quotes is no
// comment.
func withoutComments(text string) string {
	return comments.ReplaceAllStringFunc(text, func(found string) string {
		if found[0] == '"' {
			return found
		}
		return " "
	})
}

func newKey(name, algorithm, secret string) (Key, error) {
	full, known := algorithms[strings.TrimSuffix(strings.ToLower(algorithm), ".")]
	switch raw, err := base64.StdEncoding.DecodeString(secret); {
	case !known:
		return Key{}, fmt.Errorf("its algorithm is not one of hmac-sha1, -sha224, -sha256, -sha384 and -sha512")
	case name == "":
		return Key{}, fmt.Errorf("it has no name")
	case err != nil || len(raw) == 0:
		return Key{}, fmt.Errorf("its secret is not in base64")
	}
	if _, ok := dns.IsDomainName(name); !ok {
		return Key{}, fmt.Errorf("its name is not one of the DNS")
	}
	return Key{Name: dns.CanonicalName(name), Algorithm: full, secret: secret}, nil
}
