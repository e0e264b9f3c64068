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
#define vql_dma_rmb() rmb()
#define vql_dma_wmb() wmb()
#else
#define vql_read_once(p) __atomic_load_n(p, __ATOMIC_RELAXED)
#define vql_write_once(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define vql_load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define vql_store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
/* What was loaded before is not loaded again, in place of a copy, after. */
#define vql_compiler_barrier() __asm__ __volatile__("" ::: "memory")
/* Store → load ordering: the only one that costs a fence instruction on x86. */
#define vql_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
/*
 * The same between a CPU and a device: loads among each other, stores among each other, of memory
 * and of device registers alike. x86 keeps both in order by itself.
 */
#if defined(__x86_64__)
#define vql_dma_rmb() vql_compiler_barrier()
#define vql_dma_wmb() vql_compiler_barrier()
#elif defined(__aarch64__)
#define vql_dma_rmb() __asm__ __volatile__("dmb oshld" ::: "memory")
#define vql_dma_wmb() __asm__ __volatile__("dmb oshst" ::: "memory")
#else
#define vql_dma_rmb() vql_mb()
#define vql_dma_wmb() vql_mb()
#endif
#endif

#endif
