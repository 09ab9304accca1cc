package metering

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
)

// magic begins every file of a series and names the format's version. After it come, for
// each resolution, the number of samples and the samples, each as four differences to the
// one before (time, cpu in thousandths of a percent, memory, disk) in zigzag varints, and at
// the end the CRC-32C of all of it. An idle sandbox takes five bytes a sample.
const magic = "wrenn-metrics-1\n"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const milli = 1000

func (s *series) encode() []byte {
	data := []byte(magic)
	for i := range s {
		r := &s[i]
		data = binary.AppendUvarint(data, uint64(r.len()))
		var last [4]int64
		for k := range r.len() {
			one := r.at(k)
			next := [4]int64{one.at, int64(math.Round(float64(one.cpu) * milli)), int64(one.memoryKiB), int64(one.diskKiB)}
			for j := range next {
				data = binary.AppendVarint(data, next[j]-last[j])
			}
			last = next
		}
	}
	return binary.BigEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
}

var errForeign = errors.New("this is not a file of metrics, or it is damaged")

func decode(data []byte) (*series, error) {
	const sumSize = 4
	if len(data) < len(magic)+sumSize || string(data[:len(magic)]) != magic {
		return nil, errForeign
	}
	body, sum := data[:len(data)-sumSize], data[len(data)-sumSize:]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(sum) {
		return nil, errForeign
	}
	rest := body[len(magic):]
	s := newSeries()
	for i := range s {
		var err error
		if rest, err = s[i].decode(rest); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, errForeign
	}
	return s, nil
}

// decode fills an empty ring from the beginning of data and returns the rest.
func (r *ring) decode(data []byte) ([]byte, error) {
	count, n := binary.Uvarint(data)
	if n <= 0 || count > uint64(r.limit) {
		return nil, errForeign
	}
	data = data[n:]
	var last [4]int64
	for k := range count {
		for j := range last {
			diff, n := binary.Varint(data)
			if n <= 0 {
				return nil, errForeign
			}
			last[j], data = last[j]+diff, data[n:]
		}
		if last[1] < 0 || last[2] < 0 || last[2] > math.MaxUint32 || last[3] < 0 || last[3] > math.MaxUint32 {
			return nil, errForeign
		}
		one := sample{at: last[0], cpu: float32(float64(last[1]) / milli), memoryKiB: uint32(last[2]), diskKiB: uint32(last[3])}
		if k > 0 && one.at <= r.at(r.len()-1).at {
			return nil, errForeign
		}
		r.push(one)
	}
	return data, nil
}
