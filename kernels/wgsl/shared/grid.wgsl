// The grid of a kernel that has more pieces of work than a grid may be wide: workgroups are numbered row by row
// (`grid` in src/backend/wgpu/queue.rs).

struct Workgroup {
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
}

fn number_of(workgroup: Workgroup) -> u32 {
    return workgroup.id.y * workgroup.count.x + workgroup.id.x;
}
