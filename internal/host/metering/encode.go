package metering

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
)

// magic begins every file of a series and names the format's version. After it come the
// limits, as varints: cpu in thousandths of a percent, memory, disk, processes, network; and,
// for each resolution, the number of samples and the samples. Of a sample comes first which
// of its fields differ from those of the one before, a bit for each, and then the differences
// of those in zigzag varints. At the end is the CRC-32C of all of it. An idle sandbox takes
// some six bytes a sample.
//
// The first version had no limits, and of each sample the differences of the first four
// fields. It is read, and never written.
const (
	magic      = "wrenn-metrics-2\n"
	firstMagic = "wrenn-metrics-1\n"
)

const (
	firstFields = 4
	fieldCount  = 9
	limitCount  = 5
)

// fields are those of a sample as they are written, in an order in which those that always
// differ come first.
type fields [fieldCount]int64

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const milli = 1000

func (s sample) fields() fields {
	return fields{
		s.at, int64(math.Round(float64(s.cpu) * milli)), int64(s.memoryKiB), int64(s.diskKiB),
		int64(s.processes), int64(s.sent), int64(s.received),
		int64(math.Round(float64(s.sentRate))), int64(math.Round(float64(s.receivedRate))),
	}
}

// sample is the other way; it refuses what cannot be.
func (f fields) sample() (sample, error) {
	for i, v := range f[1:] {
		if v < 0 || i >= 1 && i <= 3 && v > math.MaxUint32 {
			return sample{}, errForeign
		}
	}
	return sample{
		at: f[0], cpu: float32(float64(f[1]) / milli), memoryKiB: uint32(f[2]), diskKiB: uint32(f[3]),
		processes: uint32(f[4]), sent: uint64(f[5]), received: uint64(f[6]),
		sentRate: float32(f[7]), receivedRate: float32(f[8]),
	}, nil
}

func (s *series) encode() []byte {
	data := []byte(magic)
	l := s.limits
	for _, v := range [limitCount]uint64{
		uint64(math.Round(max(0, l.CPUPct) * milli)), l.MemoryBytes, l.DiskBytes, uint64(max(0, l.Processes)), l.NetworkBitsPerSecond,
	} {
		data = binary.AppendUvarint(data, v)
	}
	for i := range s.rings {
		r := &s.rings[i]
		data = binary.AppendUvarint(data, uint64(r.len()))
		var last fields
		for k := range r.len() {
			next := r.at(k).fields()
			var differ uint64
			for j := range next {
				if next[j] != last[j] {
					differ |= 1 << j
				}
			}
			data = binary.AppendUvarint(data, differ)
			for j := range next {
				if next[j] != last[j] {
					data = binary.AppendVarint(data, next[j]-last[j])
				}
			}
			last = next
		}
	}
	return binary.BigEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
}

var errForeign = errors.New("this is not a file of metrics, or it is damaged")

func decode(data []byte) (*series, error) {
	const sumSize = 4
	if len(data) < len(magic)+sumSize {
		return nil, errForeign
	}
	version := string(data[:len(magic)])
	if version != magic && version != firstMagic {
		return nil, errForeign
	}
	body, sum := data[:len(data)-sumSize], data[len(data)-sumSize:]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(sum) {
		return nil, errForeign
	}
	in := reader{data: body[len(magic):]}
	s := newSeries()
	readSample := in.sample
	if version == firstMagic {
		readSample = in.firstSample
	} else {
		s.limits = in.limits()
	}
	for i := range s.rings {
		in.ring(&s.rings[i], readSample)
	}
	if in.failed || len(in.data) > 0 {
		return nil, errForeign
	}
	return s, nil
}

// reader takes a file apart from its beginning. Once something has failed nothing is read.
type reader struct {
	data   []byte
	failed bool
}

func (in *reader) uvarint() uint64 {
	v, n := binary.Uvarint(in.data)
	if in.failed = in.failed || n <= 0; in.failed {
		return 0
	}
	in.data = in.data[n:]
	return v
}

func (in *reader) varint() int64 {
	v, n := binary.Varint(in.data)
	if in.failed = in.failed || n <= 0; in.failed {
		return 0
	}
	in.data = in.data[n:]
	return v
}

func (in *reader) limits() Limits {
	var v [limitCount]uint64
	for i := range v {
		v[i] = in.uvarint()
	}
	if v[3] > math.MaxInt32 {
		in.failed = true
	}
	return Limits{CPUPct: float64(v[0]) / milli, MemoryBytes: v[1], DiskBytes: v[2], Processes: int(v[3]), NetworkBitsPerSecond: v[4]}
}

// sample reads the fields that follow last.
func (in *reader) sample(last fields) fields {
	differ := in.uvarint()
	if differ >= 1<<fieldCount {
		in.failed = true
	}
	for j := range last {
		if differ&(1<<j) != 0 {
			last[j] += in.varint()
		}
	}
	return last
}

func (in *reader) firstSample(last fields) fields {
	for j := range firstFields {
		last[j] += in.varint()
	}
	return last
}

// ring fills an empty ring.
func (in *reader) ring(r *ring, readSample func(last fields) fields) {
	count := in.uvarint()
	if count > uint64(r.limit) {
		in.failed = true
	}
	var last fields
	for k := uint64(0); k < count && !in.failed; k++ {
		last = readSample(last)
		one, err := last.sample()
		if err != nil || k > 0 && one.at <= r.at(r.len()-1).at {
			in.failed = true
			return
		}
		r.push(one)
	}
}
