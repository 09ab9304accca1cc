package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"math/big"
)

const ed25519Kind = "ssh-ed25519"

// publicLine is a public key as it stands in a file, from its encoding as in RFC 4253.
func publicLine(kind string, key []byte) string {
	return kind + " " + base64.StdEncoding.EncodeToString(key)
}

// fields are strings as in RFC 4251: each after its length.
func fields(values ...[]byte) []byte {
	var out []byte
	for _, v := range values {
		out = binary.BigEndian.AppendUint32(out, uint32(len(v)))
		out = append(out, v...)
	}
	return out
}

// multiple is a positive number as in RFC 4251: with a zero before a first bit that is set.
func multiple(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) > 0 && b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return b
}

func rsaPublic(key *rsa.PublicKey) []byte {
	return fields([]byte("ssh-rsa"), multiple(big.NewInt(int64(key.E))), multiple(key.N))
}

// encodeEd25519 writes a key in OpenSSH's own format (its PROTOCOL.key), without a
// passphrase: it is the only one that its servers read this kind of key in.
func encodeEd25519(key ed25519.PrivateKey) (block *pem.Block, public []byte) {
	raw := key.Public().(ed25519.PublicKey)
	public = fields([]byte(ed25519Kind), raw)

	// A reader tells from the same number twice that it has decrypted well.
	check := make([]byte, 4)
	_, _ = rand.Read(check) // never fails; any number would do
	secret := append(append([]byte{}, check...), check...)
	secret = append(secret, fields([]byte(ed25519Kind), raw, key, nil)...)
	const blockSize = 8 // of the cipher "none"
	for pad := byte(1); len(secret)%blockSize != 0; pad++ {
		secret = append(secret, pad)
	}
	out := append([]byte("openssh-key-v1\x00"), fields([]byte("none"), []byte("none"), nil)...)
	out = binary.BigEndian.AppendUint32(out, 1)
	out = append(out, fields(public, secret)...)
	return &pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: out}, public
}
