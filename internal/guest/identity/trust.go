package identity

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // names files, as OpenSSL does; protects nothing
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// TrustStore says where the programs of the sandbox find the certificates that they trust.
type TrustStore struct {
	// Bundles are files of many certificates, of which the first that is there is the
	// system's. When none is, the first is made.
	Bundles []string
	// Hashed is the directory in which OpenSSL looks a certificate up by its subject.
	Hashed string
	// Local is the directory of what an administrator adds; the tool that makes the bundle
	// anew (update-ca-certificates) takes over what is there.
	Local string
}

// certificateType is that of a certificate's block in PEM.
const certificateType = "CERTIFICATE"

// ownPrefix begins the names of the files of certificates that came with an update.
const ownPrefix = "wrenn-"

// authority is one certificate to be trusted.
type authority struct {
	name  string // of its file, without what it ends with
	block []byte // in PEM
	hash  string // by which OpenSSL finds it
}

// parseAuthorities reads what an update says is to be trusted.
func parseAuthorities(bundle string) ([]authority, error) {
	wrong := func(cause error, format string, args ...any) error {
		return fault.Wrap(cause, fault.InvalidRequest, "the CA bundle %s; give certificates in PEM", fmt.Sprintf(format, args...))
	}
	var all []authority
	for rest := []byte(bundle); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != certificateType {
			return nil, wrong(nil, "has a block of type '%s'", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, wrong(err, "has a certificate, number %d, that cannot be read", len(all)+1)
		}
		hash, err := subjectHash(cert.RawSubject)
		if err != nil {
			return nil, wrong(err, "has a certificate, number %d, whose subject cannot be read", len(all)+1)
		}
		all = append(all, authority{name: ownName(cert.Raw), block: encodeCertificate(cert.Raw), hash: hash})
	}
	// What is damaged is passed over by the decoder.
	if begun := strings.Count(bundle, "-----BEGIN "); begun != len(all) {
		return nil, wrong(nil, "has %d blocks, of which %d can be read", begun, len(all))
	}
	if len(all) == 0 {
		return nil, wrong(nil, "has no certificate")
	}
	return all, nil
}

// ownName is the name of the file of a certificate, which says what is in it: a file of
// another's that happens to have such a name is not taken for ours.
func ownName(der []byte) string {
	sum := sha256.Sum256(der)
	return ownPrefix + hex.EncodeToString(sum[:16])
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: der})
}

// install makes the sandbox trust these, and no longer what an earlier call installed. Each
// file is replaced in one step, and a call that broke off is made good by the next.
func (t TrustStore) install(wanted []authority) error {
	if len(t.Bundles) == 0 {
		return nil
	}
	path := t.bundle()
	old, err := readFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	own, err := t.own()
	if err != nil {
		return err
	}
	content := old
	keep := make(map[string]bool, len(wanted))
	for _, ca := range wanted {
		_, ours := own[ca.name]
		if keep[ca.name] || !ours && bytes.Contains(old, ca.block) {
			continue // twice, or trusted anyway
		}
		keep[ca.name] = true
		if err := t.add(ca); err != nil {
			return err
		}
		if !bytes.Contains(content, ca.block) {
			if len(content) > 0 && content[len(content)-1] != '\n' {
				content = append(content, '\n')
			}
			content = append(content, ca.block...)
		}
	}
	for name, block := range own {
		if !keep[name] {
			content = bytes.ReplaceAll(content, block, nil)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return err
	}
	if err := replaceFile(path, string(content)); err != nil {
		return err
	}
	return t.forget(own, keep)
}

// bundle is the system's bundle, itself and not a link to it.
func (t TrustStore) bundle() string {
	for _, path := range t.Bundles {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			return real
		}
	}
	return t.Bundles[0]
}

// own returns what earlier calls installed, by name.
func (t TrustStore) own() (map[string][]byte, error) {
	paths, err := filepath.Glob(filepath.Join(t.Local, ownPrefix+"*.crt"))
	if err != nil {
		return nil, err
	}
	found := make(map[string][]byte, len(paths))
	for _, path := range paths {
		// Others may have put something there, which is none of ours to remove or to trip over.
		data, err := readFile(path)
		if err != nil {
			continue
		}
		name := strings.TrimSuffix(filepath.Base(path), ".crt")
		if block, _ := pem.Decode(data); block != nil && name == ownName(block.Bytes) {
			found[name] = encodeCertificate(block.Bytes)
		}
	}
	return found, nil
}

// add puts a certificate into the two directories.
func (t TrustStore) add(ca authority) error {
	for _, dir := range []string{t.Local, t.Hashed} {
		if err := os.MkdirAll(dir, dirMode); err != nil {
			return err
		}
	}
	file := filepath.Join(t.Local, ca.name+".crt")
	if err := replaceFile(file, string(ca.block)); err != nil {
		return err
	}
	if err := linkOnce(file, filepath.Join(t.Hashed, ca.name+".pem")); err != nil {
		return err
	}
	for n := 0; ; n++ { // others may have the same hash
		link := filepath.Join(t.Hashed, ca.hash+"."+strconv.Itoa(n))
		err := linkOnce(ca.name+".pem", link)
		if !errors.Is(err, os.ErrExist) {
			return err
		}
	}
}

// linkOnce makes a link unless it is there; another file of that name is os.ErrExist.
func linkOnce(target, link string) error {
	err := os.Symlink(target, link)
	if errors.Is(err, os.ErrExist) {
		if is, readErr := os.Readlink(link); readErr == nil && is == target {
			return nil
		}
	}
	return err
}

// forget takes what is not to be kept out of the two directories. The files that say what
// is ours go last.
func (t TrustStore) forget(own map[string][]byte, keep map[string]bool) error {
	links, err := filepath.Glob(filepath.Join(t.Hashed, "*.[0-9]*"))
	if err != nil {
		return err
	}
	for name := range own {
		if keep[name] {
			continue
		}
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && target == name+".pem" {
				if err := removeIfThere(link); err != nil {
					return err
				}
			}
		}
		err := errors.Join(removeIfThere(filepath.Join(t.Hashed, name+".pem")), removeIfThere(filepath.Join(t.Local, name+".crt")))
		if err != nil {
			return err
		}
	}
	return nil
}

// nameSET is a relative distinguished name of X.501. The end of its name is what makes it a
// SET to the package asn1.
type nameSET []struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// subjectHash is the name under which OpenSSL looks for a certificate with this subject: the
// beginning of the SHA-1 of the subject with all of its texts in UTF-8, lower case and
// single spaces, and without the outermost header (X509_NAME_hash_ex).
func subjectHash(raw []byte) (string, error) {
	var sets []nameSET
	rest, err := asn1.Unmarshal(raw, &sets)
	if err == nil && len(rest) > 0 {
		err = errors.New("something follows it")
	}
	if err != nil {
		return "", err
	}
	hash := sha1.New() //nolint:gosec // see the import
	for _, set := range sets {
		for i, attribute := range set {
			if text, ok := textOf(attribute.Value); ok {
				plain := strings.Join(strings.FieldsFunc(text, isSpace), " ")
				set[i].Value = asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(lower(plain))}
			}
		}
		der, err := asn1.Marshal(set)
		if err != nil {
			return "", err
		}
		hash.Write(der)
	}
	return fmt.Sprintf("%08x", binary.LittleEndian.Uint32(hash.Sum(nil))), nil
}

// The kind of text in ASN.1 that the package asn1 has no name for.
const tagVisibleString = 26

// textOf returns the text that a value is, in UTF-8.
func textOf(value asn1.RawValue) (string, bool) {
	if value.Class != asn1.ClassUniversal {
		return "", false
	}
	switch value.Tag {
	case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String, tagVisibleString:
		return string(value.Bytes), true
	case asn1.TagT61String: // which OpenSSL takes for Latin-1
		var text strings.Builder
		for _, c := range value.Bytes {
			text.WriteRune(rune(c))
		}
		return text.String(), true
	case asn1.TagBMPString:
		units := make([]uint16, 0, len(value.Bytes)/2) //nolint:mnd // bytes of a unit
		for i := 0; i+1 < len(value.Bytes); i += 2 {
			units = append(units, binary.BigEndian.Uint16(value.Bytes[i:]))
		}
		return string(utf16.Decode(units)), true
	}
	return "", false
}

// isSpace and lower are about ASCII alone, as OpenSSL is.
func isSpace(r rune) bool { return r == ' ' || r >= '\t' && r <= '\r' }

func lower(text string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, text)
}
