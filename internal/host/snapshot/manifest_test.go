package snapshot

import (
	"encoding/json"
	"hash/crc32"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func valid(t testing.TB, change func(*Manifest)) []byte {
	t.Helper()
	m := sample
	m.Version, m.ID, m.Files = version, "sn1", []File{{Name: "pages.img", Size: pieceSize + 1, CRC32C: []uint32{1, 2}}}
	change(&m)
	data, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAManifestComesBackAsItWas(t *testing.T) {
	data := valid(t, func(*Manifest) {})
	m, err := decode(data)
	if err != nil {
		t.Fatal(err)
	}
	m.Version, m.ID, m.Files = 0, "", nil
	if diff := cmp.Diff(sample, m); diff != "" {
		t.Error(diff)
	}
}

func TestAManifestThatCannotBeTrustedIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Manifest){
		"version":      func(m *Manifest) { m.Version++ },
		"id":           func(m *Manifest) { m.ID = "../x" },
		"no files":     func(m *Manifest) { m.Files = nil },
		"path":         func(m *Manifest) { m.Files[0].Name = "../pages.img" },
		"parent":       func(m *Manifest) { m.Files[0].Name = ".." },
		"no name":      func(m *Manifest) { m.Files[0].Name = "" },
		"twice":        func(m *Manifest) { m.Files = append(m.Files, m.Files[0]) },
		"size":         func(m *Manifest) { m.Files[0].Size = -1 },
		"checksums":    func(m *Manifest) { m.Files[0].CRC32C = m.Files[0].CRC32C[:1] },
		"huge":         func(m *Manifest) { m.Files[0].Size = 1 << 62 },
		"no checksums": func(m *Manifest) { m.Files[0].CRC32C = nil },
	} {
		if _, err := decode(valid(t, change)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// Any byte that changes is noticed, wherever it is in what counts.
func TestEveryByteOfAManifestCounts(t *testing.T) {
	data := valid(t, func(*Manifest) {})
	want, err := decode(data)
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		for _, bit := range []byte{1, 0x20} {
			data[i] ^= bit
			if m, err := decode(data); err == nil && !cmp.Equal(m, want) {
				t.Errorf("byte %d changed the manifest unnoticed", i)
			}
			data[i] ^= bit
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(valid(f, func(*Manifest) {}))
	f.Add(valid(f, func(m *Manifest) { m.Files[0].Name = "a/b" }))
	f.Add([]byte(`{"manifest":null,"crc32c":0}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		// The fuzzer would hardly find a checksum: what it makes is tried with the right one too.
		var raw json.RawMessage
		if json.Unmarshal(data, &raw) == nil {
			sealed, err := json.Marshal(envelope{Manifest: raw, CRC32C: crc32.Checksum(raw, castagnoli)})
			if err == nil {
				check(t, sealed)
			}
		}
		check(t, data)
	})
}

func check(t *testing.T, data []byte) {
	t.Helper()
	m, err := decode(data)
	if err != nil {
		return
	}
	for _, f := range m.Files {
		if f.Name == "" || f.Name == ".." || int64(len(f.CRC32C)) != pieces(f.Size) {
			t.Errorf("took %+v", f)
		}
	}
	again, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	if back, err := decode(again); err != nil || !cmp.Equal(back, m) {
		t.Errorf("%+v came back as %+v, %v", m, back, err)
	}
}
