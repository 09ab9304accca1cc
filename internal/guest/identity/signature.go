package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"strings"
)

// signaturePrefix names the version of the signatures.
const signaturePrefix = "v1_"

// Signed is what the signature of a file's link vouches for: that whoever made it knew the
// access token.
type Signed struct {
	// Path and Username are as they are in the link, not resolved; either may be empty.
	Path, Username string
	// Operation is read or write.
	Operation string
	// Expiration is when the link stops to be good, in seconds since 1970; nil is never.
	Expiration *int64
}

// SignedBy says whether signature is the one that the holder of the access token would
// make of what is signed. Nothing is while no token is set.
func (i *Identity) SignedBy(signature string, signed Signed) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.token != "" && equal(signature, sign(signed, i.token))
}

// sign makes the signature that the SDKs make: fields joined by colons, hashed.
func sign(signed Signed, token string) string {
	fields := []string{signed.Path, signed.Operation, signed.Username, token}
	if signed.Expiration != nil {
		fields = append(fields, strconv.FormatInt(*signed.Expiration, 10))
	}
	sum := sha256.Sum256([]byte(strings.Join(fields, ":")))
	return signaturePrefix + base64.RawStdEncoding.EncodeToString(sum[:])
}
