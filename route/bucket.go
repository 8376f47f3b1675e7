package route

import (
	"crypto/md5" // spreads keys; nothing secret hangs on it
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/atollhq/atoll/topo"
)

// MaxKey is the longest key in bytes; a longer one is refused.
const MaxKey = 512

// Bucket maps a key in its canonical form to one of n buckets: for "md5" the big-endian first four bytes of MD5(key),
// masked. The same in PostgreSQL: ('x'||substr(md5(key),1,8))::bit(32)::int & (n-1). Test vectors are in testdata.
func Bucket(hash, key string, n int) (topo.BucketID, error) {
	if hash != topo.HashMD5 {
		return 0, fmt.Errorf("bucket hash %q is not known; want %q", hash, topo.HashMD5)
	}
	if n < 1 || n > topo.MaxBuckets || n&(n-1) != 0 {
		return 0, fmt.Errorf("%d buckets; want a power of two up to %d", n, topo.MaxBuckets)
	}
	return bucketMD5([]byte(key), n), nil
}

func bucketMD5(key []byte, n int) topo.BucketID {
	sum := md5.Sum(key)
	return topo.BucketID(binary.BigEndian.Uint32(sum[:4]) & uint32(n-1))
}

// Errors of a key that has no canonical form. They are values, so that a refusal costs no allocation.
var (
	errKeyEmpty   = errors.New("the key is empty")
	errKeyLong    = fmt.Errorf("the key is longer than %d bytes", MaxKey)
	errKeyText    = errors.New("the key is not UTF-8 text, or has a NUL byte")
	errKeyInteger = errors.New("the key is not a decimal integer of 64 bits")
	errKeyUUID    = errors.New("the key is not a UUID")
	errKeyForm    = errors.New("the key form is not known")
)

// Canonical brings a key into the one form that is hashed, which is the form in which the database prints it:
//
//	text:    as it is; UTF-8 without NUL
//	integer: no plus sign, no leading zeros, within 64 bits: "+007" is "7"
//	uuid:    lower case with hyphens; hyphens and braces may be missing or there, as PostgreSQL reads them
func Canonical(form topo.KeyForm, raw string) (string, error) {
	var buf [MaxKey]byte
	out, err := appendCanonical(buf[:0], form, raw)
	if err != nil {
		return "", err
	}
	return string(out), nil
}

func appendCanonical(dst []byte, form topo.KeyForm, raw string) ([]byte, error) {
	switch {
	case raw == "":
		return nil, errKeyEmpty
	case len(raw) > MaxKey:
		return nil, errKeyLong
	}
	switch form {
	case topo.TextKey:
		return appendText(dst, raw)
	case topo.IntegerKey:
		return appendInteger(dst, raw)
	case topo.UUIDKey:
		return appendUUID(dst, raw)
	}
	return nil, errKeyForm
}

func appendText(dst []byte, raw string) ([]byte, error) {
	for i := range len(raw) {
		if raw[i] == 0 {
			return nil, errKeyText
		}
	}
	if !utf8.ValidString(raw) {
		return nil, errKeyText
	}
	return append(dst, raw...), nil
}

func appendInteger(dst []byte, raw string) ([]byte, error) {
	digits, negative := raw, false
	if raw[0] == '+' || raw[0] == '-' {
		digits, negative = raw[1:], raw[0] == '-'
	}
	var n uint64
	limit := uint64(1<<63 - 1)
	if negative {
		limit++
	}
	for i := range len(digits) {
		d := uint64(digits[i] - '0')
		if d > 9 || n > (limit-d)/10 {
			return nil, errKeyInteger
		}
		n = n*10 + d
	}
	if digits == "" {
		return nil, errKeyInteger
	}
	if negative && n > 0 {
		dst = append(dst, '-')
	}
	return strconv.AppendUint(dst, n, 10), nil
}

// appendUUID reads 8-4-4-4-12, the same without any hyphens, and either in braces.
func appendUUID(dst []byte, raw string) ([]byte, error) {
	if len(raw) > 2 && raw[0] == '{' && raw[len(raw)-1] == '}' {
		raw = raw[1 : len(raw)-1]
	}
	hyphens := len(raw) == 36
	if !hyphens && len(raw) != 32 {
		return nil, errKeyUUID
	}
	digits := 0
	for i := range len(raw) {
		c := raw[i]
		if hyphens && (i == 8 || i == 13 || i == 18 || i == 23) {
			if c != '-' {
				return nil, errKeyUUID
			}
			continue
		}
		switch {
		case '0' <= c && c <= '9' || 'a' <= c && c <= 'f':
		case 'A' <= c && c <= 'F':
			c += 'a' - 'A'
		default:
			return nil, errKeyUUID
		}
		if digits == 8 || digits == 12 || digits == 16 || digits == 20 {
			dst = append(dst, '-')
		}
		dst = append(dst, c)
		digits++
	}
	return dst, nil
}
