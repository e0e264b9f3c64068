/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Memory ordering between a driver and its device: a driver on another CPU, in
 * another kernel, reads and writes the same rings. Kernel and user space; BPF
 * programs never touch a ring.
 *
 * Each access to memory that the other side writes goes through one of these,
 * so that it happens exactly once and is never torn (sizes up to 8 bytes).
 */
#ifndef VQLANE_BARRIER_H
#define VQLANE_BARRIER_H

#include "types.h"

#if defined(__KERNEL__)
#include <asm/barrier.h>
#include <linux/compiler.h>
#define vql_read_once(p) READ_ONCE(*(p))
#define vql_write_once(p, v) WRITE_ONCE(*(p), v)
#define vql_load_acquire(p) virt_load_acquire(p)
#define vql_store_release(p, v) virt_store_release(p, v)
#define vql_mb() virt_mb()
#define vql_compiler_barrier() barrier()
#else
#define vql_read_once(p) __atomic_load_n(p, __ATOMIC_RELAXED)
#define vql_write_once(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define vql_load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define vql_store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
/* What was loaded before is not loaded again, in place of a copy, after. */
#define vql_compiler_barrier() __asm__ __volatile__("" ::: "memory")
/* Store → load ordering: the only one that costs a fence instruction on x86. */
#define vql_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#endif

#endif
