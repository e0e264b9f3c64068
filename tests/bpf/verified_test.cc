// SPDX-License-Identifier: GPL-2.0-only
// What the verifier has to go through is part of each start of the daemon, and of each restart.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <catch2/catch_test_macros.hpp>
#include <memory>
#include <unistd.h>

namespace {

struct close_object {
    void operator()(bpf_object* o) const { bpf_object__close(o); }
};

} // namespace

TEST_CASE("bpf: the verifier takes few steps for the program that counts", "[bpf]") {
    if (access("/sys/kernel/btf/vmlinux", R_OK) != 0)
        SKIP("this kernel does not tell its types");
    if (libbpf_probe_bpf_prog_type(BPF_PROG_TYPE_RAW_TRACEPOINT, nullptr) != 1)
        SKIP("this kernel loads no BPF programs for tracepoints, or not for us");
    const std::unique_ptr<bpf_object, close_object> o(
        bpf_object__open_file(VQL_TEST_BPF_DIR "/../../bpf/stats.bpf.o", nullptr));
    REQUIRE(o);
    REQUIRE(bpf_object__load(o.get()) == 0); // libbpf says why on stderr
    bpf_prog_info info{};
    uint32_t bytes = sizeof(info);
    const bpf_program* counts = bpf_object__find_program_by_name(o.get(), "kernel_stats");
    REQUIRE(bpf_obj_get_info_by_fd(bpf_program__fd(counts), &info, &bytes) == 0);
    CHECK(info.verified_insns > 0);
    CHECK(info.verified_insns < 2000); // with a branch for each bit of a latency: 77,323
}
