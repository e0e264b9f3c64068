// SPDX-License-Identifier: GPL-2.0-only
// What the verifier has to go through is part of a daemon's start, and of each restart, where disks
// may be in the kernel lane.
#include "ebpf/object.h"

#include <bpf/bpf.h>
#include <catch2/catch_test_macros.hpp>

TEST_CASE("bpf: the verifier takes few steps for the program that counts", "[bpf]") {
    if (libbpf_probe_bpf_prog_type(BPF_PROG_TYPE_RAW_TRACEPOINT, nullptr) != 1)
        SKIP("this kernel loads no BPF programs for tracepoints, or not for us");
    const vql::libbpf_words words;
    const vql::bpf_object_ptr o(
        bpf_object__open_file(VQL_TEST_BPF_DIR "/../../bpf/stats.bpf.o", nullptr));
    REQUIRE(o);
    const int loaded = bpf_object__load(o.get());
    INFO(words.text());
    REQUIRE(loaded == 0);
    bpf_prog_info info{};
    uint32_t bytes = sizeof(info);
    const bpf_program* counts = bpf_object__find_program_by_name(o.get(), "kernel_stats");
    REQUIRE(bpf_obj_get_info_by_fd(bpf_program__fd(counts), &info, &bytes) == 0);
    CHECK(info.verified_insns > 0);
    CHECK(info.verified_insns < 2000); // with a branch for each bit of a latency: 77,323
}
