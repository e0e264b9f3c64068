/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The dialect door: the one header that knows whether it is compiled as kernel
 * C, BPF C, or user-space C and C++. Everything else in include/vqlane is
 * written once, on top of what this file gives.
 */
#ifndef VQLANE_TYPES_H
#define VQLANE_TYPES_H

#if defined(__KERNEL__)
#include <linux/errno.h>
#include <linux/stddef.h>
#include <linux/string.h>
#include <linux/types.h>
#elif defined(__bpf__)
#ifndef __VMLINUX_H__ /* bpftool's vmlinux.h brings the same names */
#include <linux/types.h>
#endif
#include <stdbool.h>
#include <stddef.h>
#else
#include <errno.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#endif

/* A pure helper: inlined everywhere, silent where it is not used. */
#define VQL_INLINE static __attribute__((unused, always_inline)) inline

/* … and one that is rarely needed: kept out of the way of what is. */
#define VQL_COLD static __attribute__((__unused__, __noinline__, __cold__))

/*
 * Bring a cache line near before it is read, or written; any address will do. For x86-64 without options,
 * compilers take the one for the other; PREFETCHW is in the manuals of all of them, if as a NOP of the oldest.
 */
#define VQL_PREFETCH(p) __builtin_prefetch(p, 0, 3)
#if defined(__x86_64__) && !defined(__bpf__)
#define VQL_PREFETCH_WRITE(p) __asm__ volatile("prefetchw %0" : : "m"(*(const char *)(p)))
#else
#define VQL_PREFETCH_WRITE(p) __builtin_prefetch(p, 1, 3)
#endif

#define VQL_LIKELY(x) __builtin_expect(!!(x), 1)
#define VQL_UNLIKELY(x) __builtin_expect(!!(x), 0)

#if defined(__cplusplus)
#define VQL_STATIC_ASSERT(cond, text) static_assert(cond, text)
#else
#define VQL_STATIC_ASSERT(cond, text) _Static_assert(cond, text)
#endif

/*
 * virtio 1.x structures are little-endian (virtio 1.3 §1.4). We serve
 * little-endian hosts only, so that a field is used as it is read.
 */
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "vqlane serves little-endian hosts only"
#endif

/* Disks and devices are addressed in sectors of 512 bytes, as in virtio and Linux. */
#define VQL_SECTOR_SHIFT 9
#define VQL_SECTOR_BYTES 512u

#endif
