package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// renew makes anew what tells machines apart and is in files, for a sandbox that was
// something else before: a copy of another one, or the image that all are made from. The
// entropy of a kernel is not among it: a user-space kernel takes its host's. What takes
// long goes on after the return; report hears how it failed.
func (s System) renew(report func(error)) []error {
	var failed []error
	if s.MachineIDPath != "" {
		if err := renewMachineID(s.MachineIDPath); err != nil {
			failed = append(failed, fmt.Errorf("renew the machine id: %w", err))
		}
	}
	if s.SSHDir != "" {
		if err := s.renewHostKeys(report); err != nil {
			failed = append(failed, fmt.Errorf("renew the SSH host keys: %w", err))
		}
	}
	return failed
}

// machineIDBytes is the length of an id in the format of machine-id(5).
const machineIDBytes = 16

func renewMachineID(path string) error {
	id := make([]byte, machineIDBytes)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	return replaceFile(path, hex.EncodeToString(id)+"\n")
}

// hostKey is one kind of host key that OpenSSH's server looks for.
type hostKey struct {
	name string
	slow bool // to make
	make func() (crypto.Signer, error)
}

// rsaBits is the size that ssh-keygen gives a host key.
const rsaBits = 3072

var hostKeys = []hostKey{
	{"ssh_host_ed25519_key", false, func() (crypto.Signer, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}},
	{"ssh_host_ecdsa_key", false, func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	{"ssh_host_rsa_key", true, func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, rsaBits) }},
}

// renewHostKeys puts a new key in the place of every host key that is there, and lets a
// running server read them. All old ones go first: no server may ever show another
// sandbox's. A key that takes long to make comes a moment later than the others.
func (s System) renewHostKeys(report func(error)) error {
	found, err := filepath.Glob(filepath.Join(s.SSHDir, "ssh_host_*_key"))
	if err != nil || len(found) == 0 {
		return err
	}
	had := map[string]bool{}
	for _, path := range found {
		had[filepath.Base(path)] = true
		if err := errors.Join(os.Remove(path), removeIfThere(path+".pub")); err != nil {
			return err
		}
	}
	var later []hostKey
	for _, kind := range hostKeys {
		switch {
		case !had[kind.name]:
		case kind.slow:
			later = append(later, kind)
		default:
			if err := s.makeHostKey(kind); err != nil {
				return err
			}
		}
	}
	if len(later) == 0 {
		return s.reloadSSH()
	}
	go func() {
		var errs []error
		for _, kind := range later {
			errs = append(errs, s.makeHostKey(kind))
		}
		if err := errors.Join(append(errs, s.reloadSSH())...); err != nil {
			report(fmt.Errorf("renew the SSH host keys: %w", err))
		}
	}()
	return nil
}

func (s System) makeHostKey(kind hostKey) error {
	key, err := kind.make()
	if err == nil {
		err = writeHostKey(filepath.Join(s.SSHDir, kind.name), key)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", kind.name, err)
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// reloadSSH tells a running server to read its keys again.
func (s System) reloadSSH() error {
	data, err := readFile(s.SSHPidPath)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return nil //nolint:nilerr // whatever this file is, it is none of a server's
	}
	// The number may be another process's by now.
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || strings.TrimSpace(string(name)) != "sshd" {
		return nil //nolint:nilerr // it does not run
	}
	return unix.Kill(pid, unix.SIGHUP)
}

// hostKeyMode is the mode that a server wants of its secret keys.
const hostKeyMode = 0o600

// writeHostKey writes a pair of keys in the formats that OpenSSH reads.
func writeHostKey(path string, key crypto.Signer) error {
	block, public, err := encodeHostKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), hostKeyMode); err != nil {
		return err
	}
	return os.WriteFile(path+".pub", []byte(public+"\n"), fileMode)
}

func encodeHostKey(key crypto.Signer) (block *pem.Block, public string, err error) {
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}, publicLine("ssh-rsa", rsaPublic(&key.PublicKey)), nil
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return nil, "", err
		}
		point, err := key.PublicKey.Bytes()
		if err != nil {
			return nil, "", err
		}
		const kind = "ecdsa-sha2-nistp256"
		return &pem.Block{Type: "EC PRIVATE KEY", Bytes: der}, publicLine(kind, fields([]byte(kind), []byte("nistp256"), point)), nil
	case ed25519.PrivateKey:
		block, public := encodeEd25519(key)
		return block, publicLine(ed25519Kind, public), nil
	}
	return nil, "", fmt.Errorf("no format for a %T", key)
}
