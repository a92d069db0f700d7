"""What a report says to whoever reads it, in the languages of the pack."""

from __future__ import annotations

from collections.abc import Mapping

ENGLISH: Mapping[str, str] = {
    "no reuse": "no reuse",
    "compressor": "KV Cache Compressor",
    "custom": "custom settings",
    "record": "recorded, every step computed",
    "saved": "saved {saved} of {whole} ({factor:.1f} x)",
    "no time": "no time saved",
    "took": "took {seconds}",
    "kv": "K/V {held} of {whole} MB",
    "kv all": "K/V {held} MB",
    "expected": "expected {psnr:.0f} dB",
    "stopped": "broken off after {done} of {total} steps",
    "not finite": "Values are not finite from {place} on: the video is worth nothing there.",
    "near": "Beside the uncached video: {seen}, as measured on other videos of this model.",
    "near recorded": "Beside the uncached video: {seen}, as far as the recording tells; FlowCache Compare measures it.",
    "on top": " What the bounded K/V changes comes on top.",
    "not measured": "How near it is to the uncached video was not measured for these settings; FlowCache Compare does.",
    "identical": "Nothing was reused: it is the uncached video.",
    "identical kv": "Nothing was reused; what the bounded K/V changed, FlowCache Compare measures.",
    "next": "Next: {what}",
    "try compressor": "KV Cache Compressor; at {steps} steps memory is what can be saved.",
    "try reuse": "FlowCache Chunkwise Reuse with the preset auto, before the sampler.",
    "try calibrate": "FlowCache Calibrate on this run: it makes a preset of this model out of it.",
    "try record": "the preset record for one run, then FlowCache Calibrate: lists of this model's own.",
    "try budget": "KV Cache Compressor: this video's K/V grows with every chunk.",
    "try rival": "FlowCache Compare with {plain} plain steps, which cost the same.",
    "try finite": "look at the first step that is not finite; often the model's dtype, or a LoRA.",
    "60": "as good as identical",
    "45": "no difference to be seen",
    "38": "a difference that is hard to see",
    "30": "a difference that can be seen",
    "0": "another video",
}
CHINESE: Mapping[str, str] = {
    "no reuse": "未复用",
    "compressor": "KV 缓存压缩",
    "custom": "自定义设置",
    "record": "已记录，每一步都计算",
    "saved": "节省 {whole} 中的 {saved}（{factor:.1f} 倍）",
    "no time": "没有节省时间",
    "took": "用时 {seconds}",
    "kv": "K/V {held} MB（全部需 {whole} MB）",
    "kv all": "K/V {held} MB",
    "expected": "预计 {psnr:.0f} dB",
    "stopped": "在 {total} 步中的第 {done} 步后中断",
    "not finite": "从 {place} 起数值不是有限数：此后的视频没有意义。",
    "near": "与不用缓存的视频相比：{seen}（在此模型的其他视频上测得）。",
    "near recorded": "与不用缓存的视频相比：{seen}（由记录推算）；FlowCache 比较可以测量。",
    "on top": "受限的 K/V 带来的变化另计。",
    "not measured": "这些设置与不用缓存的视频有多接近，没有测量过；FlowCache 比较可以测量。",
    "identical": "没有复用任何步：这就是不用缓存的视频。",
    "identical kv": "没有复用任何步；受限的 K/V 改变了什么，FlowCache 比较可以测量。",
    "next": "下一步：{what}",
    "try compressor": "KV 缓存压缩；只有 {steps} 步时，能节省的是内存。",
    "try reuse": "在采样器之前接 FlowCache 分块复用，预设选 auto。",
    "try calibrate": "对这次运行用 FlowCache 校准：由它得到此模型的预设。",
    "try record": "用预设 record 运行一次，再用 FlowCache 校准：得到此模型自己的列表。",
    "try budget": "KV 缓存压缩：此视频的 K/V 随每一块增长。",
    "try rival": "用 FlowCache 比较，与花费相同的 {plain} 个普通步相比。",
    "try finite": "查看第一个非有限的步；常见原因是模型的 dtype 或某个 LoRA。",
    "60": "几乎完全相同",
    "45": "看不出差别",
    "38": "难以看出差别",
    "30": "可以看出差别",
    "0": "已是另一个视频",
}
LANGUAGES: Mapping[str, Mapping[str, str]] = {"en": ENGLISH, "zh": CHINESE}


def words(language: str) -> Mapping[str, str]:
    """For a language as pages name it, such as "zh-TW"; English where there is no other."""
    return LANGUAGES.get(language.partition("-")[0], ENGLISH)
