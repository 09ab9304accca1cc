// Package identity knows who the sandbox is and who is in it: its ids and name, the token
// that opens it, its default user, working directory and environment, and its accounts.
//
// A sandbox is told who it is after it has started, and again after each restore. The
// package must not know how it is told.
package identity

import (
	"cmp"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/hex"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// fallbackUser is the default user before anybody named one.
const fallbackUser = "root"

// reserved are variables that only the sandbox itself sets, for all that Update.Env says.
var reserved = []string{"E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID", eventsVariable}

// Update is what the sandbox is told. Fields that are nil or empty leave what is known
// as it is, except for Token.
type Update struct {
	// Token is the new access token; empty removes it.
	Token string
	// TokenHash, unless it is empty, is what the host says of the token that may be set
	// whatever is set now: its SHA-512 in hexadecimal digits.
	TokenHash string
	// Env replaces the environment that every process gets.
	Env map[string]string
	// Timestamp orders the updates of one sandbox: one that is older than the last is ignored.
	Timestamp             time.Time
	DefaultUser           string
	Workdir               string
	SandboxID, TemplateID string
	Hostname              string
	Nameservers           []string
	// EventsIP is the address of the service that takes events of programs.
	EventsIP string
	// CABundle are certificates, in PEM, of authorities that the sandbox is to trust. They
	// replace those of an earlier update.
	CABundle string
}

// Identity is what is known. It is safe for concurrent use.
type Identity struct {
	users  *Users
	system System
	logger *slog.Logger

	mu      sync.Mutex
	token   string
	env     map[string]string
	own     map[string]string // environment that Update.Env cannot change
	last    time.Time
	user    string // empty until somebody named one
	workdir string
}

// New returns an Identity that knows nothing yet and writes what it learns to system.
func New(users *Users, system System, logger *slog.Logger) *Identity {
	return &Identity{
		users: users, system: system, logger: logger,
		own: map[string]string{"E2B_SANDBOX": "true"},
	}
}

// Apply takes an update over, if the caller may do this; see allows. Presented is the
// access token that the caller has shown beside the one in the update. An update that is
// wrong in any part changes nothing; after an Internal error everything has changed that
// could.
func (i *Identity) Apply(up Update, presented string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.allows(up, presented) {
		return fault.New(fault.Unauthorized, "the access token is not the one that is set, nor the one that the host means")
	}
	if err := i.check(up); err != nil {
		return err
	}
	// Only the id tells a copy from the sandbox that it was made from. What the clock was there
	// says nothing: it may have been set back since, and the copy would keep what is not its own.
	another := up.SandboxID != "" && up.SandboxID != i.own["E2B_SANDBOX_ID"]
	if !up.Timestamp.IsZero() {
		if !another && up.Timestamp.Before(i.last) {
			return nil
		}
		i.last = up.Timestamp
	}
	i.token = up.Token
	if up.Env != nil {
		i.env = maps.Clone(up.Env)
		for _, name := range reserved {
			delete(i.env, name)
		}
	}
	if up.DefaultUser != "" {
		i.user = up.DefaultUser
	}
	if up.Workdir != "" {
		i.workdir = up.Workdir
	}
	if up.SandboxID != "" {
		i.own["E2B_SANDBOX_ID"] = up.SandboxID
	}
	if up.TemplateID != "" {
		i.own["E2B_TEMPLATE_ID"] = up.TemplateID
	}
	if up.EventsIP != "" {
		i.own[eventsVariable] = eventsURL(up.EventsIP)
	}
	// A sandbox whose files cannot be written, as on a full disk, is still to be reached.
	report := func(err error) { i.logger.Warn("take over the identity", "err", err) }
	failed := i.system.apply(up)
	if another {
		failed = append(failed, i.system.renew(report)...)
	}
	for _, err := range failed {
		report(err)
	}
	return i.trust(up.CABundle)
}

// trust installs the certificates of a bundle that check has passed. Who sends one relies
// on it, unlike on the files of apply.
func (i *Identity) trust(bundle string) error {
	if bundle == "" {
		return nil
	}
	wanted, err := parseAuthorities(bundle)
	if err == nil {
		err = i.system.Trust.install(wanted)
	}
	if err != nil {
		return fault.Wrap(err, fault.Internal,
			"the certificates of the CA bundle could not be installed, but everything else was taken over; see that the sandbox's disk is not full, and try again")
	}
	return nil
}

// allows says whether the caller may make an update: because it sets the token that the
// host means, or proves to know the one that is set, or because nobody has said yet what
// the token is. It is for Apply, which holds mu.
func (i *Identity) allows(up Update, presented string) bool {
	switch {
	case matches(up.Token, up.TokenHash):
		return true
	case i.token != "":
		return equal(up.Token, i.token) || equal(presented, i.token)
	}
	// A program in the sandbox that comes before the host must not lock it out.
	return up.TokenHash == ""
}

// check says what is wrong with an update. It is for Apply, which holds mu.
func (i *Identity) check(up Update) error {
	if err := CheckEnv(up.Env); err != nil {
		return err
	}
	// One that is set already has been looked up when it was set. By now the sandbox's own
	// root may have removed the account, and must still be able to be woken.
	if up.DefaultUser != "" && up.DefaultUser != i.user {
		if _, err := i.users.Lookup(up.DefaultUser); err != nil {
			return fault.Wrap(err, fault.InvalidRequest, "default user '%s' does not exist in this sandbox", up.DefaultUser)
		}
	}
	if up.Workdir != "" && !strings.HasPrefix(up.Workdir, "/") {
		return fault.New(fault.InvalidRequest, "default working directory '%s' is not absolute", up.Workdir)
	}
	if strings.ContainsRune(up.Workdir+up.SandboxID+up.TemplateID, 0) {
		return fault.New(fault.InvalidRequest, "the default working directory and the ids must not contain NUL bytes")
	}
	return checkSystem(up)
}

// TokenRequired says whether a token is set.
func (i *Identity) TokenRequired() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.token != ""
}

// Authorized says whether token opens the sandbox: it is the one that is set, or none is.
func (i *Identity) Authorized(token string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.token == "" || equal(token, i.token)
}

// User returns the account with this name; an empty name is the default user.
func (i *Identity) User(name string) (User, error) {
	if name == "" {
		i.mu.Lock()
		name = cmp.Or(i.user, fallbackUser)
		i.mu.Unlock()
	}
	return i.users.Lookup(name)
}

// Workdir returns the default working directory, empty when none was set.
func (i *Identity) Workdir() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.workdir
}

// Environment returns the whole environment of a process of user, sorted, as KEY=value:
// path and what login(1) would set, then the sandbox's own, then what the process's
// caller asked for; later wins.
func (i *Identity) Environment(path string, user User, requested map[string]string) []string {
	env := map[string]string{"PATH": path, "HOME": user.Home, "USER": user.Name, "LOGNAME": user.Name}
	i.mu.Lock()
	maps.Copy(env, i.env)
	maps.Copy(env, i.own)
	i.mu.Unlock()
	maps.Copy(env, requested)
	pairs := make([]string, 0, len(env))
	for key, value := range env {
		pairs = append(pairs, key+"="+value)
	}
	slices.Sort(pairs)
	return pairs
}

// DefaultEnv returns the environment that every process gets, without what depends on its
// user.
func (i *Identity) DefaultEnv() map[string]string {
	i.mu.Lock()
	defer i.mu.Unlock()
	env := make(map[string]string, len(i.env)+len(i.own))
	maps.Copy(env, i.env)
	maps.Copy(env, i.own)
	return env
}

// CheckEnv says what of env cannot be in an environment.
func CheckEnv(env map[string]string) error {
	for key, value := range env {
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.ContainsRune(value, 0) {
			return fault.New(fault.InvalidRequest,
				"environment variable %q is not possible: a name must not be empty or contain '=', and nothing may contain NUL bytes", key)
		}
	}
	return nil
}

// matches says whether hash is that of token.
func matches(token, hash string) bool {
	sum := sha512.Sum512([]byte(token))
	return equal(hex.EncodeToString(sum[:]), hash)
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
