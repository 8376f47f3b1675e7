package assess

import (
	"math"
	"math/bits"
	"math/cmplx"
)

// bins is the size of the grid on which latencies are convolved; a power of two.
const bins = 1024

// grid holds distributions of times as shares per step. What lies beyond its end is counted in the last bin.
type grid struct{ step float64 }

// spread is a distribution on a grid.
type spread [bins]float64

// spectrum is its Fourier transform: adding independent times multiplies their spectra.
type spectrum [bins]complex128

// lognormal is the distribution with the given median and 99th percentile; equal ones make it a constant.
func (g grid) lognormal(p50, p99 float64) *spread {
	var out spread
	if p50 <= 0 {
		out[0] = 1
		return &out
	}
	sigma := spreadOf(p50, p99)
	if sigma < 1e-6 {
		return g.constant(p50)
	}
	below := 0.0
	for i := range bins {
		cdf := 1.0
		if i < bins-1 {
			cdf = .5 * math.Erfc(-math.Log((float64(i)+.5)*g.step/p50)/(sigma*math.Sqrt2))
		}
		out[i], below = cdf-below, cdf
	}
	return &out
}

// constant keeps the mean where v falls between two steps: many small trips add up exactly.
func (g grid) constant(v float64) *spread {
	var out spread
	at, part := math.Modf(v / g.step)
	if at >= bins-1 {
		out[bins-1] = 1
		return &out
	}
	out[int(at)], out[int(at)+1] = 1-part, part
	return &out
}

// quantile is the time that a share q of answers does not exceed.
func (g grid) quantile(s *spread, q float64) float64 {
	sum := 0.0
	for i, p := range s {
		if sum += p; sum >= q {
			return float64(i) * g.step
		}
	}
	return bins * g.step
}

// slowest is the distribution of the maximum of independent times.
func slowest(parts []*spread) *spread {
	var out spread
	before := 0.0
	sums := make([]float64, len(parts))
	for i := range bins {
		product := 1.0
		for j, p := range parts {
			sums[j] += p[i]
			product *= sums[j]
		}
		out[i], before = product-before, product
	}
	return &out
}

func (s *spread) spectrum() *spectrum {
	var out spectrum
	for i, v := range s {
		out[i] = complex(v, 0)
	}
	fourier(&out, false)
	return &out
}

// spread transforms back; rounding errors below zero are cut off.
func (s *spectrum) spread() *spread {
	c := *s
	fourier(&c, true)
	var out spread
	for i, v := range c {
		out[i] = max(0, real(v))
	}
	return &out
}

// times is the spectrum of the sum of so many of these times; between whole numbers, a mixture of both.
func (s *spectrum) times(n float64) *spectrum {
	whole, part := math.Modf(n)
	var out spectrum
	for i, v := range s {
		p := complex(1, 0)
		for base, k := v, int(whole); k > 0; k >>= 1 {
			if k&1 == 1 {
				p *= base
			}
			base *= base
		}
		out[i] = p * (complex(1-part, 0) + complex(part, 0)*v)
	}
	return &out
}

func (s *spectrum) add(o *spectrum) *spectrum {
	var out spectrum
	for i := range out {
		out[i] = s[i] * o[i]
	}
	return &out
}

// roots are the powers of the grid's root of unity, forward.
var roots = func() (out [bins / 2]complex128) {
	for i := range out {
		out[i] = cmplx.Rect(1, -2*math.Pi*float64(i)/bins)
	}
	return out
}()

// fourier transforms in place (Cooley and Tukey 1965).
func fourier(a *spectrum, inverse bool) {
	shift := 64 - bits.Len64(bins-1)
	for i := range bins {
		if j := int(bits.Reverse64(uint64(i)) >> shift); i < j {
			a[i], a[j] = a[j], a[i]
		}
	}
	for size := 2; size <= bins; size *= 2 {
		half, stride := size/2, bins/size
		for from := 0; from < bins; from += size {
			for k := range half {
				w := roots[k*stride]
				if inverse {
					w = cmplx.Conj(w)
				}
				u, v := a[from+k], a[from+k+half]*w
				a[from+k], a[from+k+half] = u+v, u-v
			}
		}
	}
	if inverse {
		for i := range a {
			a[i] /= bins
		}
	}
}
