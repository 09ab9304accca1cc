package sandbox

import "unicode/utf8"

// MaxOutput is how much of each of stdout and stderr Exec returns, in bytes.
const MaxOutput = 10 << 20

// bounded keeps the beginning of a stream, MaxOutput bytes of it. The zero value is
// ready.
type bounded struct {
	buf       []byte
	truncated bool
}

func (b *bounded) add(p []byte) {
	if room := MaxOutput - len(b.buf); len(p) > room {
		p = p[:room]
		b.truncated = true
	}
	b.buf = append(b.buf, p...)
}

// bytes returns what was kept, without a character that the limit cut in two: it alone
// would make text look like binary data.
func (b *bounded) bytes() []byte {
	if !b.truncated {
		return b.buf
	}
	for i := 1; i < utf8.UTFMax && i <= len(b.buf); i++ {
		if tail := b.buf[len(b.buf)-i:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return b.buf[:len(b.buf)-i]
			}
			break
		}
	}
	return b.buf
}
