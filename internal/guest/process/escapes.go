package process

// parser takes the output of a terminal apart into escape sequences. Its zero value is
// outside of any. See ECMA-48, section 5.
type parser struct {
	state parserState
	// marker is what a control sequence begins with if it is private, such as '?'.
	marker byte
	// between is the intermediate byte before the last one, 0 for none, and many for more
	// than one.
	between byte
	numbers [maxNumbers]int
	count   int   // of numbers that are complete
	number  int   // the one that is being read
	read    int64 // in all, in bytes
}

type parserState uint8

// Where in an escape sequence the parser is.
const (
	ground  parserState = iota
	escape              // after ESC
	control             // after ESC [
)

// maxNumbers is how many numbers of a sequence count; programs change few modes at once.
const maxNumbers = 8

// maxNumber is beyond every number that has a meaning here; larger ones are not told apart.
const maxNumber = 1 << 14

// many stands for several intermediate bytes. No sequence that has them is known here.
const many = 0xff

// Control characters that break a sequence off, and one that terminals do not see.
const (
	cancel     = '\x18'
	substitute = '\x1a'
	del        = '\x7f'
)

var escapeBytes = []byte{'\x1b'}

// step reads a byte of a sequence. If it is the last one it returns of what kind the
// sequence was, and ground if not.
func (p *parser) step(c byte) (ended parserState) {
	switch {
	case c == '\x1b':
		p.begin(escape)
	case c == cancel, c == substitute:
		p.state = ground
	case c < ' ', c == del: // nothing of the sequence
	case c <= '/':
		if p.between != 0 {
			c = many
		}
		p.between = c
	case p.state == escape && c == '[' && p.between == 0:
		p.begin(control)
	case p.state == control && c <= '9':
		p.number = min(p.number*10+int(c-'0'), maxNumber)
	case p.state == control && c == ';':
		p.endNumber()
	case p.state == control && c < '@':
		p.marker = c
	default:
		ended, p.state = p.state, ground
		p.endNumber()
	}
	return ended
}

func (p *parser) begin(state parserState) {
	*p = parser{state: state, read: p.read}
}

func (p *parser) endNumber() {
	if p.count < maxNumbers {
		p.numbers[p.count] = p.number
		p.count++
	}
	p.number = 0
}

// given returns the numbers of the sequence that has just ended, 0 for those left out.
func (p *parser) given() []int { return p.numbers[:p.count] }
