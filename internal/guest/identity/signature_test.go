package identity

import (
	"log/slog"
	"testing"
)

func newIdentity() *Identity {
	return New(NewUsers("/etc/passwd", "/etc/group"), System{}, slog.New(slog.DiscardHandler))
}

func TestSignature(t *testing.T) {
	const token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"
	signed := Signed{Path: "hello.txt", Operation: "read", Username: "user"}
	const want = "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"
	if got := sign(signed, token); got != want {
		t.Fatalf("the vector of the SDKs gives %s, want %s", got, want)
	}
	id := newIdentity()
	if id.SignedBy(want, signed) || id.SignedBy(sign(signed, ""), signed) {
		t.Error("a signature is good while there is no token")
	}
	if err := id.Apply(Update{Token: token}, ""); err != nil {
		t.Fatal(err)
	}
	if !id.SignedBy(want, signed) {
		t.Error("the vector of the SDKs is refused")
	}
	never, zero := signed, int64(0)
	never.Expiration = &zero
	for name, other := range map[string]Signed{
		"path": {Path: "hello.txt2", Operation: "read", Username: "user"}, "operation": {Path: "hello.txt", Operation: "write", Username: "user"},
		"user": {Path: "hello.txt", Operation: "read"}, "expiration": never,
	} {
		if id.SignedBy(want, other) {
			t.Errorf("the signature is good for another %s", name)
		}
	}
	if id.SignedBy("", signed) || id.SignedBy(want+"=", signed) {
		t.Error("what is not the signature is good")
	}
}

// FuzzSignature wants a signature to be good for what it was made for, and what is not one
// not to be.
func FuzzSignature(f *testing.F) {
	f.Add("hello.txt", "read", "user", int64(0), "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E")
	f.Add("", "", "", int64(-1), "")
	f.Add("a:read", "user", ":", int64(1<<62), "v1_")
	f.Add("\x00", "write", "\xff", int64(1), "v2_AAAA")
	f.Fuzz(func(t *testing.T, path, operation, username string, expiration int64, guess string) {
		id := newIdentity()
		if err := id.Apply(Update{Token: "secret"}, ""); err != nil {
			t.Fatal(err)
		}
		for _, expires := range []*int64{nil, &expiration} {
			signed := Signed{Path: path, Operation: operation, Username: username, Expiration: expires}
			good := sign(signed, "secret")
			if !id.SignedBy(good, signed) {
				t.Fatalf("%+v: the signature is refused", signed)
			}
			if guess != good && id.SignedBy(guess, signed) {
				t.Fatalf("%+v: a guess is good", signed)
			}
			if id.SignedBy(sign(signed, "other"), signed) {
				t.Fatalf("%+v: a signature by another token is good", signed)
			}
		}
	})
}
