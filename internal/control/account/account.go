// Package account is who may use the API: API keys, which are kept as hashes and shown
// once. It declares the store that it needs and must not know SQL or HTTP.
package account

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// keyPrefix is how a key begins. Under altPrefix, which clients of E2B insist on, the
	// same secret is the same key.
	keyPrefix = "wrn_"
	altPrefix = "e2b_"
	// secretBytes is the length of a secret, which is written in hexadecimal.
	secretBytes = 20
	// shownDigits is how much of a key its owner sees again, to tell keys apart. The
	// digits left cannot be guessed.
	shownDigits = 6
	// touchInterval is how exact Key.LastUsedAt is: a write for each request would be
	// many.
	touchInterval = time.Minute
)

// Key is an API key without its secret.
type Key struct {
	Hash       [sha256.Size]byte // of the secret's 40 hexadecimal digits
	Prefix     string            // the beginning of the key, such as wrn_0a1b2c
	Name       string
	CreatedAt  time.Time
	LastUsedAt time.Time // zero: never
}

// Store keeps keys. Its not_found means that there is no such row and nothing else.
type Store interface {
	KeyByHash(ctx context.Context, hash [sha256.Size]byte) (Key, error)
	// InsertFirstKey inserts a key if there is none at all, and reports whether it did.
	InsertFirstKey(ctx context.Context, k Key) (bool, error)
	InsertKey(ctx context.Context, k Key) error
	TouchKey(ctx context.Context, hash [sha256.Size]byte, at time.Time) error
}

// Service checks keys and makes them. It is safe for concurrent use.
type Service struct {
	store Store
	log   *slog.Logger

	mu sync.Mutex
	// touched is when this process last wrote that a key was used.
	touched map[[sha256.Size]byte]time.Time
}

// New returns the service of accounts.
func New(store Store, log *slog.Logger) *Service {
	return &Service{store: store, log: log, touched: make(map[[sha256.Size]byte]time.Time)}
}

// EnsureFirst makes a key when there is none, and returns it. It is the only time that
// the key is seen: when there are keys already it returns "".
func (s *Service) EnsureFirst(ctx context.Context) (string, error) {
	key, secret := newKey("first")
	made, err := s.store.InsertFirstKey(ctx, key)
	if err != nil || !made {
		return "", err
	}
	return secret, nil
}

// Create makes a key with a name for people, and returns its secret, which is not seen
// again.
func (s *Service) Create(ctx context.Context, name string) (string, error) {
	key, secret := newKey(name)
	if err := s.store.InsertKey(ctx, key); err != nil {
		return "", err
	}
	return secret, nil
}

func newKey(name string) (key Key, secret string) {
	var raw [secretBytes]byte
	_, _ = rand.Read(raw[:]) // never fails: it ends the program instead
	digits := hex.EncodeToString(raw[:])
	return Key{
		Hash:      sha256.Sum256([]byte(digits)),
		Prefix:    keyPrefix + digits[:shownDigits],
		Name:      name,
		CreatedAt: time.Now().UTC().Truncate(time.Microsecond),
	}, keyPrefix + digits
}

// Verify returns the key that secret is, or an unauthorized error.
func (s *Service) Verify(ctx context.Context, secret string) (Key, error) {
	digits, ok := digitsOf(secret)
	if !ok {
		return Key{}, fault.New(fault.Unauthorized, "this is not an API key; one is wrn_ and %d hexadecimal digits", 2*secretBytes)
	}
	hash := sha256.Sum256([]byte(digits))
	key, err := s.store.KeyByHash(ctx, hash)
	if fault.Is(err, fault.NotFound) || err == nil && subtle.ConstantTimeCompare(key.Hash[:], hash[:]) != 1 {
		return Key{}, fault.New(fault.Unauthorized, "this API key is not known here; check that it belongs to this server")
	}
	if err != nil {
		return Key{}, err
	}
	s.touch(ctx, hash)
	return key, nil
}

// touch writes that a key is used, now and then. That it could not is no reason to turn
// the user away.
func (s *Service) touch(ctx context.Context, hash [sha256.Size]byte) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	s.mu.Lock()
	due := now.Sub(s.touched[hash]) >= touchInterval
	if due {
		s.touched[hash] = now
	}
	s.mu.Unlock()
	if !due {
		return
	}
	if err := s.store.TouchKey(ctx, hash, now); err != nil {
		s.log.WarnContext(ctx, "could not write when a key was used", "error", err)
	}
}

// digitsOf returns the hexadecimal digits of a well-formed key.
func digitsOf(secret string) (string, bool) {
	digits, ok := strings.CutPrefix(secret, keyPrefix)
	if !ok {
		digits, ok = strings.CutPrefix(secret, altPrefix)
	}
	if !ok || len(digits) != 2*secretBytes {
		return "", false
	}
	digits = strings.ToLower(digits)
	_, err := hex.DecodeString(digits)
	return digits, err == nil
}
