package account

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// memory keeps keys as a database would. It is not safe for concurrent use.
type memory struct {
	keys    map[[sha256.Size]byte]Key
	err     error // of every call, when set
	touched int
}

func (m *memory) KeyByHash(_ context.Context, hash [sha256.Size]byte) (Key, error) {
	if m.err != nil {
		return Key{}, m.err
	}
	k, ok := m.keys[hash]
	if !ok {
		return Key{}, fault.New(fault.NotFound, "there is no such API key")
	}
	return k, nil
}

func (m *memory) InsertFirstKey(ctx context.Context, k Key) (bool, error) {
	if len(m.keys) > 0 || m.err != nil {
		return false, m.err
	}
	return true, m.InsertKey(ctx, k)
}

func (m *memory) InsertKey(_ context.Context, k Key) error {
	if m.err == nil {
		m.keys[k.Hash] = k
	}
	return m.err
}

func (m *memory) TouchKey(_ context.Context, hash [sha256.Size]byte, at time.Time) error {
	m.touched++
	k := m.keys[hash]
	k.LastUsedAt = at
	m.keys[hash] = k
	return m.err
}

func newTest() (*Service, *memory) {
	m := &memory{keys: make(map[[sha256.Size]byte]Key)}
	return New(m, slog.New(slog.DiscardHandler)), m
}

func TestFirstKey(t *testing.T) {
	s, m := newTest()
	secret, err := s.EnsureFirst(t.Context())
	if err != nil || len(secret) != 44 || !strings.HasPrefix(secret, "wrn_") {
		t.Fatalf("%q %v", secret, err)
	}
	if again, err := s.EnsureFirst(t.Context()); again != "" || err != nil {
		t.Errorf("a second first key: %q %v", again, err)
	}
	for _, k := range m.keys {
		if k.Hash != sha256.Sum256([]byte(secret[4:])) || !strings.HasPrefix(secret, k.Prefix) || len(k.Prefix) > 10 {
			t.Errorf("kept %+v", k)
		}
	}
}

func TestVerify(t *testing.T) {
	s, m := newTest()
	secret, err := s.EnsureFirst(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	digits := secret[4:]
	for _, good := range []string{secret, "e2b_" + digits, "wrn_" + strings.ToUpper(digits)} {
		if _, err := s.Verify(t.Context(), good); err != nil {
			t.Errorf("%.8s…: %v", good, err)
		}
	}
	other := "0" + digits[1:]
	if digits[0] == '0' {
		other = "1" + digits[1:]
	}
	for _, bad := range []string{"", digits, "wrn_", "abc_" + digits, secret + "0", secret[:43], "wrn_" + other, "wrn_" + strings.Repeat("z", 40), "wrn_e2b_" + digits[4:]} {
		_, err := s.Verify(t.Context(), bad)
		if !fault.Is(err, fault.Unauthorized) {
			t.Errorf("%q: %v", bad, err)
		}
		if bad != "" && strings.Contains(err.Error(), bad) && len(bad) > 10 {
			t.Errorf("the error gives the secret away: %v", err)
		}
	}
	if m.touched != 1 {
		t.Errorf("%d writes that the key was used", m.touched)
	}
	if k := m.keys[sha256.Sum256([]byte(digits))]; k.LastUsedAt.IsZero() {
		t.Error("nobody wrote that the key was used")
	}
}

func TestAnOutageIsNotAWrongKey(t *testing.T) {
	s, m := newTest()
	secret, err := s.EnsureFirst(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.err = errors.New("disk on fire")
	if _, err := s.Verify(t.Context(), secret); !fault.Is(err, fault.Internal) {
		t.Errorf("%v", err)
	}
}
